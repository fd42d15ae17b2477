"""Publishing, listing, keeping and deleting checkpoints; and what a torn write leaves to be seen: nothing."""

from __future__ import annotations

import errno
import json
import logging
import math
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import CheckpointError
from shoal.job import Checkpoints
from shoal.state.layout import Extent
from shoal.state.manifest import Manifest
from shoal.state.reader import CheckpointReader
from shoal.state.storage import Storage
from shoal.state.store import CheckpointInfo, CheckpointStore, read_manifest, retain
from tests.support.failing_filesystem import FailingHandler
from tests.support.full_disk import check_full_disk
from tests.support.states import full_state, save

pytestmark = pytest.mark.unit


def steps(store: CheckpointStore) -> list[int]:
    return [info.step for info in store.list()]


@pytest.fixture(params=["path", "uri", "subtree"])
def place(request, tmp_path):
    """The same folder as (base, filesystem): a local path, a URI, and a path inside a pyarrow filesystem."""
    folder = tmp_path / "a run"
    if request.param == "path":
        return str(folder), None
    if request.param == "uri":
        return folder.as_uri(), None
    return "a run", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())


def test_a_published_checkpoint_is_listed_with_what_is_known_of_it(place):
    base, filesystem = place
    store = CheckpointStore(base, filesystem)
    assert store.list() == ()
    assert store.latest() is None
    save(base, 100, full_state(1), filesystem=filesystem, metrics={"val/loss": 2.0, "nan": math.nan})
    uri = save(base, 20, full_state(2), filesystem=filesystem)
    assert steps(store) == [20, 100]
    latest = store.latest()
    assert latest is not None
    assert (latest.step, latest.metrics["val/loss"], uri.rpartition("/")[2]) == (100, 2.0, "step-00000020")
    assert math.isnan(latest.metrics["nan"])
    manifest = store.open(latest.uri)
    assert (manifest.step, manifest.keys) == (100, ("param", "exp_avg", "exp_avg_sq"))
    assert [f.name[:20] for f in manifest.files] == ["shard-00000-of-00002", "shard-00001-of-00002"]
    with CheckpointReader(latest.uri, filesystem) as reader:
        reader.verify()
    store.delete(100)
    store.delete(100)
    assert steps(store) == [20]
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-00000100.*never finished, or it was deleted"):
        store.open(latest.uri)


def test_options_of_a_uri_stay_behind_the_path():
    storage = Storage("s3://bucket/run?region=eu-west-1&scheme=http")
    assert storage.child("step-1").uri_of("x") == "s3://bucket/run/step-1/x?region=eu-west-1&scheme=http"
    assert storage.child("step-1").path("x") == "bucket/run/step-1/x"
    assert storage.is_object_store


def test_a_local_path_becomes_absolute_because_other_processes_work_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CheckpointStore("x/y").uri == str(tmp_path / "x/y")


@pytest.mark.parametrize("dead", [False, True], ids=["cleans up", "killed"])
def test_a_write_torn_at_any_point_is_invisible_and_damages_nothing(tmp_path, dead):
    save(tmp_path, 10, full_state(1))
    whole = FailingHandler()
    save(tmp_path / "count", 20, full_state(2), filesystem=pafs.PyFileSystem(whole))
    assert whole.done.count("move") == 3, "two shards and the manifest"
    for fail_at in range(len(whole.done)):
        failing = pafs.PyFileSystem(FailingHandler(fail_at=fail_at, dead=dead))
        with pytest.raises(CheckpointError, match="injected"):
            save(tmp_path, 20, full_state(2), filesystem=failing)
        store = CheckpointStore(tmp_path)
        assert steps(store) == [10]
        with CheckpointReader(store.list()[0].uri) as reader:
            reader.verify()
            assert torch.equal(reader.read("param", [Extent("head.bias", 0, 7)]), full_state(1)["param"]["head.bias"])
        if not dead:
            assert not list(tmp_path.rglob("*.partial")), "what could not be finished is given back"
    # The next attempt is not disturbed by what the torn ones left behind, and the one after the next removes it.
    save(tmp_path, 20, full_state(2))
    save(tmp_path, 30, full_state(3))
    store = CheckpointStore(tmp_path)
    assert steps(store) == [10, 20, 30]
    assert store.remove_leftovers()
    assert len(list((tmp_path / "step-00000020").iterdir())) == 3
    for info in store.list():
        CheckpointReader(info.uri).verify()
    assert store.remove_leftovers() == ()


def test_publishing_a_step_again_replaces_it_at_once_or_not_at_all(tmp_path):
    uri = save(tmp_path, 10, full_state(1), size=2)
    count = FailingHandler()
    save(tmp_path / "count", 10, full_state(2), size=3, filesystem=pafs.PyFileSystem(count))
    for fail_at in range(len(count.done)):
        with pytest.raises(CheckpointError, match="injected"):
            save(tmp_path, 10, full_state(2), size=3, filesystem=pafs.PyFileSystem(FailingHandler(fail_at=fail_at)))
        reader = CheckpointReader(uri)
        reader.verify()
        assert reader.manifest.world_size == 2
    save(tmp_path, 10, full_state(2), size=3)
    assert CheckpointReader(uri).manifest.world_size == 3


def test_leftovers_that_may_be_in_the_making_stay(tmp_path):
    save(tmp_path, 10, full_state(1))
    for step in (5, 20):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "shard-00000-of-00001-aa.safetensors").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    store = CheckpointStore(tmp_path)
    assert store.remove_leftovers() == ("step-00000005",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "step-00000010", "step-00000020"]


def test_a_damaged_manifest_is_invisible_told_and_never_deleted(tmp_path, caplog):
    uri = save(tmp_path, 10, full_state(1))
    save(tmp_path, 20, full_state(1))
    path = Path(uri) / "manifest.json"
    text = path.read_text()
    for broken, message in [
        (text[: len(text) // 2], "not valid JSON"),
        (text.replace('"optimizer_step": 10', '"optimizer_step": 11'), "does not match its own digest"),
        (text.replace('"version": 1', '"version": 2', 1), "format version 2 is not known here"),
        ("[]", "not the manifest of a Shoal checkpoint"),
        ("{}", "not the manifest of a Shoal checkpoint"),
    ]:
        path.write_text(broken)
        with pytest.raises(CheckpointError, match=f"manifest.json.*{message}"):
            read_manifest(uri)
        store = CheckpointStore(tmp_path)
        with caplog.at_level(logging.WARNING):
            assert steps(store) == [20]
        assert message.split()[0] in caplog.text
        assert store.remove_leftovers() == ()


@pytest.mark.parametrize("field", ["step", "job", "files", "digest", "scalars", "model", "cursor", "time"])
def test_a_missing_field_is_named(tmp_path, field):
    uri = save(tmp_path, 10, full_state(1))
    body = json.loads((Path(uri) / "manifest.json").read_text())
    del body[field]
    with pytest.raises(CheckpointError, match=f"'{field}' is missing|does not match its own digest"):
        Manifest.from_json(json.dumps(body))


def test_a_manifest_survives_json(tmp_path):
    manifest = read_manifest(save(tmp_path, 10, full_state(1), metrics={"val/loss": 0.1}))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.total_bytes == sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))


def test_only_a_whole_state_is_published(tmp_path):
    manifest = read_manifest(save(tmp_path, 10, full_state(1)))
    first, second = manifest.files
    store = CheckpointStore(tmp_path)
    for files, message in [
        ((first,), r"not whole: parameter head\.weight, elements \d+\.\.29 are in no file"),
        ((second,), r"not whole: parameter embed\.weight, elements 0\.\.11 are in no file"),
        ((first, second, first), r"not whole: parameter embed\.weight, element 0 is in two files"),
        ((first, replace(second, keys=("param",))), r"holds param, but other files hold param, exp_avg"),
        ((first, second, replace(first, extents=(Extent("x", 0, 1),))), r"x is no parameter of the model"),
        ((first, replace(second, name="gone.safetensors")), r"gone\.safetensors is missing.*same storage"),
        ((first, replace(second, bytes=3)), r"has \d+ bytes instead of 3"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            store.publish(replace(manifest, step=10, files=files))


@pytest.fixture
def small_files():
    """No file may grow beyond 100 kB in this process. (Python ignores the signal that comes with it.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_finished_gives_an_error_and_leaves_the_older_one_valid(tmp_path, small_files):
    uri = save(tmp_path, 10, full_state(1))
    sizes = (("w", 50_000),)
    with pytest.raises(CheckpointError, match=r"cannot write .*step-00000020/shard-00000.*raise `ulimit -f` or set"):
        save(tmp_path, 20, full_state(2, sizes), sizes=sizes)
    assert steps(CheckpointStore(tmp_path)) == [10]
    CheckpointReader(uri).verify()
    assert not list((tmp_path / "step-00000020").iterdir())


def test_a_full_disk_gives_an_error_and_leaves_the_older_one_valid(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=96k none {disk} && echo mounted && {sys.executable} -m tests.support.full_disk {disk}"
    )
    for may_mount in (["unshare", "-rm"], []):  # in a mount namespace of its own, or else as root
        if shutil.which((may_mount or ["mount"])[0]) is None:
            continue
        done = subprocess.run([*may_mount, "sh", "-c", script], capture_output=True, text=True)
        subprocess.run(["umount", "-q", str(disk)], capture_output=True)
        if "mounted" in done.stdout:
            assert done.returncode == 0, done.stderr
            return
    # Where nothing may be mounted: the same error at the same place.
    check_full_disk(disk, pafs.PyFileSystem(FailingHandler(fail_at=3, error=errno.ENOSPC)))


def test_a_full_disk_is_told_whoever_reports_it(tmp_path):
    check_full_disk(tmp_path, pafs.PyFileSystem(FailingHandler(fail_at=3, error=errno.ENOSPC)))


def test_a_place_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="a file stands where a folder is needed; move it away"):
        save(tmp_path / "file", 10, full_state(1))
    with pytest.raises(CheckpointError, match=r"cannot write /sys/.*(permission denied; make|read-only)"):
        save("/sys/shoal", 10, full_state(1))
    with pytest.raises(CheckpointError, match=r"cannot use ftp://host/x.*give a local path, or a URI such as"):
        CheckpointStore("ftp://host/x")


INFOS = st.lists(
    st.builds(
        CheckpointInfo,
        step=st.integers(0, 60),
        uri=st.just(""),
        metrics=st.dictionaries(st.sampled_from(["a", "b"]), st.floats(), max_size=2),
        time=st.just(0.0),
    ),
    unique_by=lambda info: info.step,
)
MAYBE = st.none() | st.integers(1, 7)


@pytest.mark.parametrize(("count", "kept"), [(1, [20, 50]), (2, [20, 40, 50]), (None, [10, 20, 30, 40, 50])])
def test_as_many_of_the_best_are_kept_as_the_policy_says(count, kept):
    losses = {10: 5.0, 20: 1.0, 30: 4.0, 40: 2.0, 50: 3.0}
    infos = [CheckpointInfo(step, f"step-{step}", {"loss": loss}, 0.0) for step, loss in losses.items()]
    gone = retain(infos, Checkpoints(keep_last=1, keep_best="loss", best_count=count))
    assert [step for step in losses if step not in gone] == kept


@given(INFOS, MAYBE, MAYBE, st.sampled_from([None, "a", "-a", "missing"]))
def test_retention_keeps_what_the_policy_names_and_nothing_else(infos, last, every, best):
    policy = Checkpoints(keep_last=last, keep_every=every, keep_best=best)
    gone = retain(infos, policy)
    kept = {info.step for info in infos} - set(gone)
    assert gone == sorted(set(gone))
    assert len(kept) + len(gone) == len(infos)
    if last is None:
        assert not gone
        return
    newest = sorted((i.step for i in infos), reverse=True)
    wanted = set(newest[:last]) | {s for s in newest if every and s % every == 0}
    if best in ("a", "-a"):
        values = {i.step: i.metrics["a"] for i in infos if not math.isnan(i.metrics.get("a", math.nan))}
        if values:
            top = (max if best == "-a" else min)(values.values())
            wanted.add(max(s for s, v in values.items() if v == top))
    assert kept == wanted
    # Deleting in several rounds gives the same as deleting at once.
    assert retain([i for i in infos if i.step in kept], policy) == []


def test_prune_applies_the_policy(tmp_path):
    for step, loss in ((10, 1.0), (20, 0.5), (30, 0.7), (40, 0.9)):
        save(tmp_path, step, full_state(step), metrics={"val/loss": loss})
    store = CheckpointStore(tmp_path)
    assert store.prune(Checkpoints(keep_last=1, keep_best="val/loss")) == (10, 30)
    assert steps(store) == [20, 40]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000040"]


def test_the_coordinators_side_imports_neither_torch_nor_ray():
    code = (
        "import sys, shoal.state.store, shoal.state.manifest; sys.exit(any(m in sys.modules for m in ('torch', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
