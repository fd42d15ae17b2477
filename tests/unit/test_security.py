"""The claims of docs/security.md that need no cluster: strangers, files that are code, names that lead elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shoal.cli.main import run
from shoal.errors import CheckpointError, ConfigError
from shoal.launch.prepare import new_folder
from shoal.run_folder import RunFolder
from shoal.state.exchange import _Notice
from shoal.state.manifest import Manifest, _digest
from shoal.state.reader import CheckpointReader
from shoal.state.store import MANIFEST, CheckpointStore
from shoal.tracking.ledger import Ledger
from shoal.tracking.sender import Sender
from shoal.tracking.settings import DatasetEntry, RecordSettings
from shoal.tuning.ledger import sweep_folder
from shoal.worker.credentials import NONCE, holds, proof
from shoal.worker.rendezvous import STRANGERS, Meeting, Rendezvous, _pack
from tests.support.ledgers import churning_run
from tests.support.states import full_state, save

pytestmark = pytest.mark.unit

TOKEN, OTHER = b"the run's", b"somebody else's"
PATIENCE = timedelta(seconds=10)
SECRET = "hunter2-hunter2"


# Strangers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[Rendezvous]:
    made = Rendezvous("127.0.0.1", TOKEN)
    yield made
    made.close()


def member(store: Rendezvous, token: bytes = TOKEN) -> Meeting:
    meeting = Meeting(store.address, 1, PATIENCE, token)
    meeting.open()
    return meeting


def test_a_stranger_neither_reads_nor_writes(store: Rendezvous) -> None:
    known = member(store)
    known.set("x", b"1")
    with pytest.raises(dist.DistNetworkError, match="hung up"):
        member(store, OTHER)
    host, port = store.address.split(":")
    for said in (
        [_pack([b"set", b"1", b"x", b"2"])],  # without a word of greeting
        [_pack([os.urandom(NONCE), os.urandom(32)]), _pack([b"set", b"1", b"x", b"2"])],
        [_pack([b"", proof(TOKEN[:-1], "caller", b"", b"")])],
    ):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            for words in said:
                line.sendall(words)
            heard = b""
            while data := _heard(line):
                heard += data
        assert len(heard) == 8 + 4 + NONCE, "a stranger hears a nonce and nothing else"
    assert known.get("x") == b"1"
    known.close()


def test_what_was_overheard_is_of_no_use(store: Rendezvous) -> None:
    """A proof is about this store's nonce, in this direction."""
    mine, theirs = os.urandom(NONCE), os.urandom(NONCE)
    said = proof(TOKEN, "caller", theirs, mine)
    assert holds(TOKEN, said, "caller", theirs, mine)
    assert not holds(TOKEN, said, "caller", os.urandom(NONCE), mine)
    assert not holds(TOKEN, said, "store", theirs, mine)
    assert not holds(TOKEN, said, "caller", theirs + mine[:1], mine[1:]), "the parts have their borders"


def test_a_store_that_does_not_know_the_token_is_not_believed() -> None:
    """Somebody who has taken over the port of a worker that is gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pose() -> None:
            line, _ = server.accept()
            with line:
                line.sendall(_pack([os.urandom(NONCE)]))
                line.recv(4096)
                line.sendall(_pack([b"ok", os.urandom(32)]))
                _heard(line)

        thread = threading.Thread(target=pose)
        thread.start()
        meeting = Meeting("{}:{}".format(*server.getsockname()), 1, PATIENCE, TOKEN)
        with pytest.raises(dist.DistNetworkError, match="does not know the token"):
            meeting.open()
        meeting.close()
        thread.join()


def test_many_strangers_do_not_keep_members_out(store: Rendezvous) -> None:
    host, port = store.address.split(":")
    lines = [socket.create_connection((host, int(port)), timeout=10) for _ in range(3 * STRANGERS)]
    known = member(store)
    known.set("x", b"1")
    assert known.get("x") == b"1"
    deadline = time.monotonic() + 10
    while len(store._callers) > STRANGERS + 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for line in lines:
        line.close()
    known.close()


def test_the_rendezvous_listens_on_one_address(store: Rendezvous) -> None:
    host, port = store.address.split(":")
    assert host == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=2).close()


PAIR = """
import sys, torch
import torch.distributed as dist
from datetime import timedelta
from shoal.membership.messages import Fresh, ViewOrder
from shoal.membership.view import View
from shoal.worker import group
address, rank, token = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
group.bind_gloo_to("127.0.0.1")
group._place.token = bytes.fromhex(sys.argv[4])
real = group.prove_to_peers
group.prove_to_peers = lambda pairs, _, *about: real(pairs, token, *about)
order = ViewOrder(View(1, ("w0", "w1")), f"w{rank}", address, Fresh())
try:
    group.form_group(order, torch.device("cpu"), None, 20.0)
    x = torch.ones(1)
    dist.all_reduce(x)
    print("formed", x.item())
except dist.DistError as error:
    print("refused:", error)
    group.dissolve_group()
"""


@pytest.mark.parametrize("knows", [True, False])
def test_a_pair_that_leads_to_a_stranger_is_not_used(store: Rendezvous, knows: bool) -> None:
    """Gloo itself takes anybody: this one has got as far as to be a pair's other end, and cannot prove who it is."""
    tokens = [TOKEN.hex(), (TOKEN if knows else OTHER).hex()]
    members = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, store.address, str(rank), tokens[rank], TOKEN.hex()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(["platform", os.environ.get("PYTHONPATH", "")])},
        )
        for rank in (0, 1)
    ]
    said = [m.communicate(timeout=60)[0] for m in members]
    if knows:
        assert [s.strip() for s in said] == ["formed 2.0", "formed 2.0"]
    else:
        assert "refused:" in said[0]
        assert "does not know the token" in said[0]


def _heard(line: socket.socket) -> bytes:
    try:
        return line.recv(4096)
    except ConnectionResetError:
        return b""


# What is read is data ------------------------------------------------------------------------------------------------


class Bomb:
    """What it does when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "it went off"
    folder = Path(save(tmp_path / "checkpoints", 5, full_state(), size=1))
    pickled, saved = pickle.dumps(Bomb(marker)), tmp_path / "saved"
    torch.save(Bomb(marker), saved)
    (shard,) = folder.glob("*.safetensors")
    size = shard.stat().st_size
    for bomb in (pickled, saved.read_bytes()):
        shard.write_bytes(bomb.ljust(size, b"\0")[:size])
        with CheckpointReader(str(folder)) as reader:
            extents = [e for f in reader.manifest.files for e in f.extents]
            with pytest.raises(CheckpointError, match="damaged"):
                reader.verify()
            with pytest.raises(CheckpointError):
                reader.read("param", extents)
    for bomb in (pickled, saved.read_bytes()):
        (folder / MANIFEST).write_bytes(bomb)
        with pytest.raises(CheckpointError):
            CheckpointReader(str(folder))
    assert not marker.exists()


def test_what_members_tell_each_other_about_the_state_is_never_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "it went off"
    with pytest.raises(ValueError):
        _Notice.from_bytes(pickle.dumps(Bomb(marker)))
    assert not marker.exists()


def test_no_other_place_unpickles() -> None:
    """Where `pickle` is used, what is read came through Ray's own channels, or is a recipe, which is code anyway."""
    source = Path(__file__).resolve().parents[2] / "platform" / "shoal"
    words = ("pickle.load", "torch.load(", "by_value.load", "np.load(", "joblib", "shelve", "marshal", "yaml.load(")
    found = {str(p.relative_to(source)) for p in source.rglob("*.py") if any(word in p.read_text() for word in words)}
    assert found == {
        "coordinator/shell.py",  # a plan, from the pool's actor
        "coordinator/summary.py",  # the run's own job
        "data/transforming.py",  # the run's own transforms
        "job/by_value.py",  # what the others call
        "job/recipe.py",  # job.pkl in a run folder
        "worker/actor.py",  # the run's own job
    }


# Names ---------------------------------------------------------------------------------------------------------------

OUTSIDE = ["../x", "/etc/x", "a/b", "..", ".", ".x", "", "a\\b", "a\nb", "a\0b", "x" * 201]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    for make in (lambda: new_folder(tmp_path / "runs", name), lambda: sweep_folder(tmp_path / "runs", name)):
        with pytest.raises(ConfigError, match="must be a word"):
            make()
    assert not (tmp_path / "runs").exists()


def test_ordinary_names_are_taken(tmp_path: Path) -> None:
    for name in ("gpt-20261120-083112-a1b2", "größe 2", "a.b_c=1"):
        assert new_folder(tmp_path, name).path == tmp_path / name


@pytest.mark.parametrize("name", ["../../victim", "/etc/passwd", "a/b", "..", ".hidden"])
def test_a_manifest_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = Path(save(tmp_path / "checkpoints", 5, full_state(), size=1))
    body = json.loads((folder / MANIFEST).read_text())
    body["files"][0]["name"] = name
    del body["digest"]
    text = json.dumps({**body, "digest": _digest(body)})
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        Manifest.from_json(text)
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        CheckpointReader(str(folder))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    CheckpointStore(str(tmp_path / "checkpoints")).remove_leftovers()
    assert victim.read_text() == "mine"


# Secrets -------------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through everything that is sent: parameters, tags, the data set, artifacts, how it ended."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    uri = f"s3://me:{SECRET}@bucket/data?secret_key={SECRET}"
    folder = RunFolder(tmp_path / "runs" / "r")
    folder.path.mkdir(parents=True)
    folder.update(run_id="r", name="gpt")
    folder.job.write_text(json.dumps({"values": {"data.train": uri}, "asked": [f"data.train={uri}"]}))
    folder.recipe.mkdir()
    (folder.recipe / "gpt.py").write_text(f"train = {uri!r}\n")
    with closing(Ledger(folder.ledger)) as ledger:
        ledger.append(list(churning_run(1e9)))
        ledger.append([{"kind": "end", "time": 9e9, "status": "failed", "reason": f"cannot read {uri}"}])
    settings = RecordSettings(
        runs=tmp_path / "runs", experiment="gpt", run_name="r", params={"data.train": uri},
        tags={"mlflow.source.name": f"shoal train --set data.train={uri}"},
        dataset=DatasetEntry(name=uri, digest="0" * 64, source=uri),
    )  # fmt: skip
    sender = Sender(folder, settings)
    sender.connect()
    sender.send()
    for name in (*sender.subject.files, "report.html"):
        sender.upload(folder.path / name)
    sender.terminate("FAILED", f"cannot read {uri}", 1)
    sender.close()
    sent = [p for p in (tmp_path / "runs" / "artifacts").rglob("*") if p.is_file()]
    assert {p.name for p in sent} >= {"job.json", "gpt.py"}
    for file in (*sent, tmp_path / "runs" / "mlflow.db", tmp_path / "runs" / "mlflow.db-wal"):
        assert not file.exists() or SECRET.encode() not in file.read_bytes(), file
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
        (shown,) = database.execute("select value from params where key = 'data.train'").fetchone()
    assert shown == "s3://me:***@bucket/data?secret_key=***"
    assert folder.record.stat().st_mode & 0o077 == 0, "what is kept for a later attempt is the user's alone"


def test_no_secret_is_in_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", f"s3://me:{SECRET}@bucket/recipe.py"]) != 0
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    assert "***" in said.err
