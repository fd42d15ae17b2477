"""The ledger of a run: one JSON object per line, only ever appended to, and the truth about the run.

Every entry has `kind` and `time` (Unix seconds); `kind` comes first in the line. The kinds and their other fields:

    start       run, job_digest, samples (of an epoch), data_digest, total_steps, positions [[first step, samples that
                each step from it on reads], ...]
    view        number, members [{id, node, ...}], first_step, reason, joined, left, lost [ids]
    commit      step, view, samples [a, b), epoch, loss, lr, grad_norm, workers, step_s, data_wait_s, compute_s,
                communicate_s, update_s, samples_per_s, tokens_per_s (where it makes sense); samples_digest (where all
                members could tell theirs), covered (virtual shards whose loss is known, where these are not all);
                progress; used {seconds, joules, dollars}: by the run until then, over all its launches
    change      view (the new one), what join|leave|loss|hang, members [ids], workers (afterwards), step (the first one
                of the view), detect_s, regroup_s, state_s, resume_s, idle_s (without a step), steps_redone
    scale       min, max: workers that the run may have from now on
    evaluation  step, metrics {"val/loss": ...}, seconds
    checkpoint  step, uri, bytes, seconds, error (if it failed)
    loss        members, cause, reason
    resume      from_step, checkpoint, reason
    worker      one has left: member, lost, joined, left (Unix seconds), seconds, joules, dollars {phase: amount},
                source (of the joules), price
    course      decided [[step, progress], ...]: of a budget that is used up by the doing, before any member hears of it
    cost        now and then: step, samples, tokens (of this run, so far); seconds, joules, dollars {phase: amount} of
                all workers; co2_g, carbon, sources, prices; and what a restarted coordinator needs to go on
    end         status finished|failed|stopped, reason; used, and cost: the totals as in `cost`

Numbers that are not finite are written as `NaN` and `Infinity`, as Python's json module reads them.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError, ShoalError
from shoal.locks import lock_descriptor

Entry = dict[str, Any]

_CHUNK = 1 << 16
_OF_STEPS = ("commit", "evaluation")


class Ledger:
    """The writing end. One process at a time holds it; not safe to use from several threads.

    Opening repairs the end of the file: a line that a crash or a power loss left unfinished is cut off.
    Raises ConfigError if the file cannot be opened, or if another process still writes it after `wait_s` seconds.
    """

    def __init__(self, path: Path, *, wait_s: float = 10.0) -> None:
        self.path = Path(path)
        self.blocked: str | None = None
        """Why the last append could not be written; None when everything is in the file."""
        self._unwritten = bytearray()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot write the ledger {self.path}: {error.strerror}; free that place or choose another runs folder"
            ) from None
        if not lock_descriptor(self._file, wait_s):
            os.close(self._file)
            raise ConfigError(
                f"run {self.path.parent.name} is still being trained by another process (it holds {self.path}); "
                f"wait for its end or stop it, then try again"
            )
        size = os.fstat(self._file).st_size
        whole = _whole_lines(self._file, size)
        self.repaired = size - whole
        """Bytes that were cut off the end at opening."""
        if self.repaired:
            os.ftruncate(self._file, whole)

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write `entries`, each with its own line, and hand them to the operating system.

        Never raises for a full disk or a failing one: what could not be written stays in memory, `blocked` says why,
        and the next append (an empty one, too) continues exactly where the file ends.
        """
        for entry in entries:
            self._unwritten += encode(entry)
        self._write()

    @property
    def waiting(self) -> int:
        """Bytes that are in memory only, because the disk refused them."""
        return len(self._unwritten)

    def close(self) -> None:
        """Write what is left, push it to the disk, and give the file free. Closing twice is fine."""
        if self._file < 0:
            return
        self._write()
        try:
            os.fsync(self._file)
        except OSError as error:
            self.blocked = error.strerror
        os.close(self._file)
        self._file = -1

    def _write(self) -> None:
        try:
            while self._unwritten:
                written = os.write(self._file, self._unwritten)
                del self._unwritten[:written]
        except OSError as error:
            self.blocked = f"{error.strerror} ({self.path})"
        else:
            self.blocked = None


def encode(entry: Mapping[str, Any]) -> bytes:
    """One line of the ledger: `kind` and `time` first; the time is now unless the entry brings its own."""
    whole = {"kind": entry["kind"], "time": round(time.time(), 3), **entry}
    return json.dumps(whole, separators=(",", ":"), default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """NumPy's and torch's scalars as Python numbers; anything else is a mistake of ours."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a ledger entry cannot hold {value!r} of type {type(value).__name__}")


def scan(path: Path, offset: int = 0) -> Iterator[tuple[Entry, int]]:
    """Entries from byte `offset` on, each with the offset behind it. A last line without its newline is left alone.

    Raises ShoalError if a complete line is not JSON.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
            except ValueError:
                raise ShoalError(
                    f"{path} has a line that is not JSON at byte {offset}: {line[:60]!r}; the disk or an editor "
                    f"damaged it. Restore the file from a copy, or delete that line"
                ) from None
            offset += len(line)
            yield entry, offset


def read(path: Path, offset: int = 0) -> tuple[list[Entry], int]:
    """All entries from byte `offset` on, and the offset to go on from. Errors as in `scan`."""
    entries: list[Entry] = []
    for entry, end in scan(path, offset):
        entries.append(entry)
        offset = end
    return entries, offset


def effective(entries: Iterable[Entry]) -> list[Entry]:
    """The entries that count: a resume from step s voids the commits and evaluations beyond s that came before it.

    If a step was nevertheless committed twice, the later word counts.
    """
    kept: list[Entry] = []
    for entry in entries:
        if entry["kind"] == "resume":
            step = entry["from_step"]
            kept = [e for e in kept if e["kind"] not in _OF_STEPS or e["step"] <= step]
        kept.append(entry)
    newest = {(e["kind"], e["step"]): at for at, e in enumerate(kept) if e["kind"] in _OF_STEPS}
    return [e for at, e in enumerate(kept) if e["kind"] not in _OF_STEPS or newest[e["kind"], e["step"]] == at]


def ends_a_line(path: Path, offset: int) -> bool:
    """Whether byte `offset` of the file is the beginning of a line: where a reading ended, unless it shrank since."""
    if offset == 0:
        return True
    try:
        with open(path, "rb") as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"
    except FileNotFoundError:
        return False


def tail(path: Path, size: int = _CHUNK) -> list[Entry]:
    """The entries that lie whole in the last `size` bytes: how a run stands, without reading all of it."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    whole = lines[1:-1] if end > size else lines[:-1]
    return [entry for line in whole if isinstance(entry := _parse(line), dict)]


def of_kind(path: Path, kind: str) -> Iterator[Entry]:
    """All entries of a rare kind, at the speed of a byte search: commits in between are not parsed."""
    mark = b'{"kind":' + json.dumps(kind).encode() + b","
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(mark)
        while at >= 0:
            end = data.find(b"\n", at)
            if end < 0:
                return
            at_line_start = at == 0 or data[at - 1 : at] == b"\n"
            entry = _parse(data[at:end]) if at_line_start else None
            if isinstance(entry, dict):
                yield entry
            at = data.find(mark, end)


def last_view(path: Path) -> int:
    """The number of the newest view; 0 if there was none. Numbers go up over all processes of a run."""
    return max((int(entry["number"]) for entry in of_kind(path, "view")), default=0)


def is_written(path: Path) -> bool:
    """Whether a process holds the ledger now, wherever it runs (False where the file system has no locks)."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not lock_descriptor(file, wait_s=0.0)
    finally:
        os.close(file)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _whole_lines(file: int, size: int) -> int:
    """Bytes up to the end of the last line that is complete and readable."""
    end = size
    while end > 0:
        end = _last_newline(file, end) + 1
        start = _last_newline(file, end - 1) + 1
        if end and isinstance(_parse(os.pread(file, end - start, start)), dict):
            return end
        end = start
    return 0


def _last_newline(file: int, before: int) -> int:
    """Place of the last newline among the first `before` bytes; -1 if there is none."""
    while before > 0:
        start = max(0, before - _CHUNK)
        at = os.pread(file, before - start, start).rfind(b"\n")
        if at >= 0:
            return start + at
        before = start
    return -1
