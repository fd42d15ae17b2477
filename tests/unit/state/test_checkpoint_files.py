"""Shard files: written by N, read by M, refused when damaged; the thread that writes them; the format itself."""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError
from shoal.state import reader as reader_module
from shoal.state.layout import Extent, divide
from shoal.state.manifest import FileEntry
from shoal.state.reader import CheckpointReader
from shoal.state.safetensors_file import DTYPES, read_header, write_tensors
from shoal.state.shard_file import write_shard
from shoal.state.storage import Storage
from shoal.state.store import CheckpointStore, step_folder
from shoal.state.writer import AsyncShardWriter
from tests.support.failing_filesystem import FailingHandler
from tests.support.states import KEYS, SIZES, full_state, manifest_of, save, shard_of

pytestmark = pytest.mark.unit


def pick(state, key, extents):
    return torch.cat([torch.zeros(0), *(state[key][e.name][e.start : e.stop] for e in extents)])


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 1000), max_size=6),
    chunk=st.sampled_from([4, 12, 1 << 20]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_part_is_read_right_however_the_state_was_divided(tmp_path_factory, sizes, cuts, chunk, data):
    table = [(f"p{i}", n) for i, n in enumerate(sizes)]
    state = full_state(len(cuts), table)
    # Divide at arbitrary places, in an arbitrary order: no engine's division is special.
    whole = [Extent(name, i, 1) for name, n in table for i in range(n)]
    bounds = sorted({0, len(whole), *(c % (len(whole) + 1) for c in cuts)})
    parts = [merge(whole[a:b]) for a, b in itertools.pairwise(bounds)] or [()]
    random.Random(len(cuts)).shuffle(parts)
    base = tmp_path_factory.mktemp("parts")
    folder = Storage(base).child(step_folder(1))
    entries = [write_shard(folder, shard_of(state, p), step=1, rank=r, size=len(parts)) for r, p in enumerate(parts)]
    uri = CheckpointStore(base).publish(manifest_of(1, entries, sizes=table))

    wanted = [
        Extent(name, start, data.draw(st.integers(0, n - start)))
        for name, n in data.draw(st.lists(st.sampled_from(table), max_size=5))
        for start in [data.draw(st.integers(0, n))]
    ]
    with pytest.MonkeyPatch.context() as patch, CheckpointReader(uri) as reader:
        patch.setattr(reader_module, "CHUNK", chunk)
        reader.verify()
        for key in KEYS:
            assert torch.equal(reader.read(key, wanted), pick(state, key, wanted))
        for size in (1, 2, 3, 7):
            back = torch.cat([reader.read("param", divide(table, rank, size)) for rank in range(size)])
            assert torch.equal(back, torch.cat([state["param"][name] for name, _ in table]))


def merge(extents):
    out = []
    for e in extents:
        if out and out[-1].name == e.name and out[-1].stop == e.start:
            out[-1] = Extent(e.name, out[-1].start, out[-1].count + e.count)
        else:
            out.append(e)
    return tuple(out)


def test_remote_storage_is_read_in_several_ranges_at_a_time(tmp_path, monkeypatch):
    sizes = (("w", 50_000),)
    state = full_state(1, sizes)
    remote = pafs.PyFileSystem(FailingHandler())  # not local to pyarrow's eyes
    uri = save(tmp_path, 1, state, sizes=sizes, filesystem=remote)
    monkeypatch.setattr(reader_module, "CHUNK", 4096)
    with CheckpointReader(uri, remote) as reader:
        reader.verify()
        extents = [Extent("w", 40_000, 9_000), Extent("w", 3, 30_000)]
        assert torch.equal(reader.read("exp_avg", extents), pick(state, "exp_avg", extents))


def test_neighbouring_parameters_are_read_in_one_go(tmp_path):
    uri = save(tmp_path, 1, full_state(), size=2)
    with CheckpointReader(uri) as reader:
        assert len(reader._runs(divide(SIZES, 0, 1))) == 2, "one run for each file"


def test_buffers_come_back_whole_with_their_types(tmp_path):
    uri = save(tmp_path, 7, full_state(), size=3)
    with CheckpointReader(uri) as reader:
        buffers = reader.buffers()
    assert set(buffers) == {"norm.mean", "norm.count"}
    assert torch.equal(buffers["norm.mean"], torch.arange(3, dtype=torch.float64))
    assert (buffers["norm.count"].item(), buffers["norm.count"].dtype, buffers["norm.count"].shape) == (
        7,
        torch.int64,
        (),
    )


def test_what_is_not_there_is_refused_by_name(tmp_path):
    with CheckpointReader(save(tmp_path, 1, full_state())) as reader:
        with pytest.raises(
            CheckpointError, match=r"no 'momentum_buffer', only param, exp_avg, exp_avg_sq: .*optimizer"
        ):
            reader.read("momentum_buffer", [Extent("head.bias", 0, 1)])
        with pytest.raises(CheckpointError, match=r"no elements 7\.\.8 of parameter head\.bias \(it holds 7 elements"):
            reader.read("param", [Extent("head.bias", 5, 4)])
        with pytest.raises(CheckpointError, match=r"no elements 0\.\.1 of parameter tail\.bias \(unknown name\)"):
            reader.read("param", [Extent("tail.bias", 0, 2)])


def test_a_checkpoint_from_another_model_names_what_differs(tmp_path):
    with CheckpointReader(save(tmp_path, 1, full_state())) as reader:
        table = [(name, n, (n,)) for name, n in SIZES]
        reader.check_model("m" * 64, [])
        reader.check_model("other types", table)
        other = [("embed.weight", 12, (3, 4)), ("norm.weight", 1, [1]), ("tail.weight", 30, (30,))]
        with pytest.raises(CheckpointError) as caught:
            reader.check_model("other", other)
    said = str(caught.value)
    assert "from another model (job 'job'): embed.weight has shape (3, 4) here, (12,) there; " in said
    assert "tail.weight is not in the checkpoint; head.weight is only in the checkpoint; and 1 more." in said


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_damaged_files_are_refused_by_name(tmp_path):
    uri = save(tmp_path, 1, full_state())
    second = next(Path(uri).glob("shard-00001*"))
    whole = second.read_bytes()
    everything = divide(SIZES, 0, 1)

    damage(second, -3)
    with pytest.raises(CheckpointError, match=rf"{second} is damaged: its SHA-256 is .*use another checkpoint"):
        CheckpointReader(uri).verify()
    CheckpointReader(uri).verify(rank=0, size=2)
    with pytest.raises(CheckpointError, match="SHA-256"):
        CheckpointReader(uri).verify(rank=1, size=2)

    for content, message in [
        (whole[:-1], rf"has {len(whole) - 1} bytes instead of {len(whole)}: it was truncated"),
        (b"", r"has 0 bytes"),
        (b"\xff" * 8 + whole[8:], r"is damaged: its header claims"),
        (whole[:8] + b"x" + whole[9:], r"is damaged: its header cannot be read"),
        (whole.replace(b'"F32"', b'"I32"', 1), r"is damaged: it does not hold what the manifest says"),
        (whole.replace(b"head", b"HEAD", 1), r"is damaged: it does not hold what the manifest says"),
    ]:
        second.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            CheckpointReader(uri).read("param", everything)
        assert second.name in str(caught.value)

    second.unlink()
    with pytest.raises(CheckpointError, match=rf"{second} is missing"):
        CheckpointReader(uri).read("param", everything)
    assert CheckpointReader(uri).read("param", [Extent("embed.weight", 0, 12)]).shape == (12,), "the rest can be read"


def test_safetensors_itself_reads_what_is_written(tmp_path):
    tensors = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "strided": torch.arange(12.0).reshape(3, 4).T}
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        written, _ = write_tensors(stream, tensors, {"format": "pt", "märk": "ü"})
    assert written == path.stat().st_size
    loaded = safetensors.torch.load_file(path)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].to(torch.complex64), tensor.to(torch.complex64)), name
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "märk": "ü"}
    with pafs.LocalFileSystem().open_input_file(str(path)) as file:
        header = read_header(file, "x")
    assert all(place.start % place.dtype.itemsize == 0 for place in header.tensors.values()), "can be mapped"
    assert {n: (p.dtype, p.shape) for n, p in header.tensors.items()} == {
        n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"z is of type torch\.complex128, which safetensors cannot hold"):
        write_tensors(path.open("wb"), {"z": torch.zeros(1, dtype=torch.complex128)}, {})


class Gate(FailingHandler):
    """Storage that stands still until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.open = threading.Event(), threading.Event()

    def create_dir(self, path: str, recursive: bool) -> None:
        self.entered.set()
        assert self.open.wait(30)
        super().create_dir(path, recursive)


def test_writing_happens_beside_the_caller_and_every_submit_is_answered_in_order(tmp_path):
    gate = Gate()
    writer = AsyncShardWriter(pafs.PyFileSystem(gate), patience_s=0.05)
    shard = shard_of(full_state(), divide(SIZES, 0, 1), 1)
    writer.submit(1, shard, str(tmp_path), 0, 1)
    assert gate.entered.wait(30)
    writer.submit(2, shard, str(tmp_path), 0, 1)  # waits its turn; the caller does not
    writer.submit(3, shard, str(tmp_path), 0, 1)  # one too many: given up after patience_s
    writer.submit(4, shard, str(tmp_path), 0, 1, final=True)  # never given up
    assert not writer.drain(0.01)
    (given_up,) = writer.poll()
    assert given_up.step == 3
    assert given_up.error is not None
    assert "waited for storage at" in given_up.error
    assert "raise checkpoints.every" in given_up.error
    gate.open.set()
    assert writer.drain(30)
    written = writer.poll()
    assert [(w.step, w.error) for w in written] == [(1, None), (2, None), (4, None)]
    assert written[0].scalars == {"optimizer_step": 1}
    assert FileEntry.from_dict(written[0].files[0]).extents == shard.extents
    assert writer.poll() == []
    assert not [t for t in threading.enumerate() if t.name == "shoal-checkpoint"], "no thread stays behind"


def test_a_submit_that_finds_room_in_time_is_written(tmp_path):
    gate = Gate()
    writer = AsyncShardWriter(pafs.PyFileSystem(gate), patience_s=30)
    shard = shard_of(full_state(), divide(SIZES, 0, 1))
    for step in (1, 2):
        writer.submit(step, shard, str(tmp_path), 0, 1)
    threading.Timer(0.05, gate.open.set).start()
    writer.submit(3, shard, str(tmp_path), 0, 1)
    assert writer.drain(30)
    assert [(w.step, w.error) for w in writer.poll()] == [(1, None), (2, None), (3, None)]


def test_errors_in_the_background_become_reports(tmp_path):
    writer = AsyncShardWriter(pafs.PyFileSystem(FailingHandler(fail_at=2)))
    shard = shard_of(full_state(), divide(SIZES, 0, 1))
    writer.submit(1, shard, str(tmp_path), 0, 1)
    writer.submit(2, shard, str(tmp_path), 0, 1)
    assert writer.drain(30)
    first, second = writer.poll()
    assert first.error is not None
    assert "cannot write" in first.error
    assert "injected" in first.error
    assert (second.error, len(second.files)) == (None, 1)
    broken = shard_of(full_state(), divide(SIZES, 0, 1))
    broken.tensors["param"] = broken.tensors["param"].double()
    writer.submit(3, broken, str(tmp_path), 0, 1)
    assert writer.drain(30)
    (third,) = writer.poll()
    assert third.error is not None
    assert "AssertionError: param is torch.float64" in third.error
