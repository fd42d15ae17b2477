"""The ledger: append only, one writer, whole lines, nothing lost to a full disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError, ShoalError
from shoal.tracking.ledger import Ledger, effective, encode, of_kind, read, scan, tail

pytestmark = pytest.mark.unit


def step(number: int, **more) -> dict:
    return {"kind": "commit", "time": 1.0, "step": number, **more}


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    ledger.append([step(1, loss=2.5), step(2, loss=float("nan"))])
    ledger.append([{"kind": "end", "status": "finished", "reason": 'a "quoted"\nline'}])
    ledger.close()
    entries, end = read(tmp_path / "run" / "ledger.jsonl")
    assert [e["kind"] for e in entries] == ["commit", "commit", "end"]
    assert entries[0] == step(1, loss=2.5)
    assert entries[1]["loss"] != entries[1]["loss"]
    assert entries[2]["reason"] == 'a "quoted"\nline'
    assert entries[2]["time"] > 1e9, "the ledger stamps entries that bring no time"
    assert end == (tmp_path / "run" / "ledger.jsonl").stat().st_size


def test_numpy_scalars_become_numbers(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    assert json.loads(encode(step(1, loss=np.float32(0.5))))["loss"] == 0.5
    with pytest.raises(TypeError, match="cannot hold"):
        encode(step(1, loss=object()))


@pytest.mark.parametrize("rest", [b'{"kind":"commit","ti', b"\0" * 70_000, b'\0\0\n{"kind"\n', b'7\n"text"\n{"a":1}'])
def test_an_unfinished_end_is_cut_off_at_opening(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    whole = encode(step(1)) + encode(step(2))
    path.write_bytes(whole + rest)
    ledger = Ledger(path)
    assert ledger.repaired == len(rest)
    ledger.append([step(3)])
    ledger.close()
    assert [e["step"] for e in read(path)[0]] == [1, 2, 3]


def test_a_ledger_of_rubbish_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b"no json at all\nnor this")
    Ledger(tmp_path / "ledger.jsonl").close()
    assert read(tmp_path / "ledger.jsonl") == ([], 0)


def test_a_reader_leaves_a_torn_line_for_later(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    line = encode(step(2))
    path.write_bytes(encode(step(1)) + line[:9])
    entries, offset = read(path)
    assert [e["step"] for e in entries] == [1]
    with path.open("ab") as file:
        file.write(line[9:])
    assert [e["step"] for e in read(path, offset)[0]] == [2]
    assert read(tmp_path / "none.jsonl", 7) == ([], 7)


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(encode(step(1)) + b"{broken\n" + encode(step(2)))
    with pytest.raises(ShoalError, match=rf"at byte {len(encode(step(1)))}.*delete that line"):
        list(scan(path))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "gpt-1" / "ledger.jsonl"
    code = "import sys; from pathlib import Path; from shoal.tracking.ledger import Ledger\n"
    code += "ledger = Ledger(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match="gpt-1 is still being trained by another process"):
            Ledger(path, wait_s=0.1)
    finally:
        holder.kill()
        holder.wait()
    Ledger(path, wait_s=5).close()


FULL_DISK = """
import json, resource, sys
from pathlib import Path
from shoal.tracking.ledger import Ledger

path = Path(sys.argv[1])
ledger = Ledger(path)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for step in range(1, 101):
    ledger.append([{"kind": "commit", "step": step}])
full = {"blocked": ledger.blocked, "size": path.stat().st_size, "waiting": ledger.waiting}
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
ledger.append([])
full["after"] = ledger.blocked
ledger.close()
print(json.dumps(full))
"""


def test_a_full_disk_delays_entries_and_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert "File too large" in said["blocked"]
    assert str(path) in said["blocked"]
    assert said["size"] == 1000
    assert said["waiting"] > 1000
    assert said["after"] is None
    assert [e["step"] for e in read(path)[0]] == list(range(1, 101))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another runs folder"):
        Ledger(tmp_path / "file" / "ledger.jsonl")


@given(st.lists(st.integers(0, 6), max_size=30))
def test_effective_history_is_what_a_list_of_steps_would_be(resumes: list[int]) -> None:
    """Each number: two steps are done, then the run goes on from that step if it is among the done ones."""
    entries, expected, done = [], [], 0
    for attempt, back in enumerate(resumes):
        for _ in range(2):
            done += 1
            entries.append(step(done, attempt=attempt))
            expected.append((done, attempt))
        if back < done:
            entries.append({"kind": "resume", "time": 1.0, "from_step": back})
            expected, done = [e for e in expected if e[0] <= back], back
    kept = effective(entries)
    assert [(e["step"], e["attempt"]) for e in kept if e["kind"] == "commit"] == expected
    assert [e for e in kept if e["kind"] == "resume"] == [e for e in entries if e["kind"] == "resume"]


def test_effective_drops_evaluations_of_steps_that_were_rolled_back_and_keeps_checkpoints() -> None:
    evaluation = {"kind": "evaluation", "time": 1.0, "step": 2, "metrics": {}}
    saved = {"kind": "checkpoint", "time": 1.0, "step": 2, "uri": "x"}
    resume = {"kind": "resume", "time": 1.0, "from_step": 1}
    assert effective([step(1), step(2), evaluation, saved, resume]) == [step(1), saved, resume]
    assert effective([step(1, loss=1.0), step(1, loss=2.0)]) == [step(1, loss=2.0)]


def test_the_tail_and_rare_kinds_are_found_without_reading_everything(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert tail(path) == []
    assert list(of_kind(path, "end")) == []
    ledger = Ledger(path)
    assert list(of_kind(path, "end")) == []
    for number in range(1, 2001):
        ledger.append([step(number, note='{"kind":"evaluation",')])
        if number % 500 == 0:
            ledger.append([{"kind": "evaluation", "time": 2.0, "step": number, "metrics": {"val/loss": 1.0}}])
    ledger.close()
    last = tail(path, 4096)
    assert last[-1]["step"] == 2000
    assert 10 < len(last) < 60
    assert [e["step"] for e in of_kind(path, "evaluation")] == [500, 1000, 1500, 2000]
    assert len(tail(path, 10**9)) == 2004
