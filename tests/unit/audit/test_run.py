"""Whole audits: a run folder, its data on disk, and ledgers that tell the truth, or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import shoal
from shoal.audit.content import Reading
from shoal.audit.epochs import check_order
from shoal.audit.run import audit_run
from shoal.audit.verdict import as_json, lines
from shoal.cli.main import shoal as command
from shoal.data.catalog import read_catalog
from shoal.data.order import Order, Window
from shoal.digests import shard_digests, step_digest
from shoal.job.store import save_job
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import Ledger
from tests.support.plain_task import Plain

pytestmark = pytest.mark.unit

ROWS, BATCH, SHARDS, STEPS = 50, 8, 4, 20
"""Three epochs and a bit: 160 samples of 50, in windows of 16 made of row groups of 7."""
Entry = dict[str, Any]


def write_data(folder: Path) -> None:
    folder.mkdir()
    ids = np.arange(ROWS)
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(ids, 3).astype(np.float32)), 3)
    pq.write_table(pa.table({"id": ids, "x": x, "unused": ids}), folder / "a.parquet", row_group_size=7)


def job_on(data: Path) -> shoal.Job:
    return shoal.Job(
        name="plain",
        task=Plain(),
        data=shoal.Data(train=str(data), window=16),
        batch=shoal.Batch(size=BATCH, virtual_shards=SHARDS),
        budget=shoal.Budget(steps=STEPS),
        seed=3,
    )


def honest(job: shoal.Job) -> list[Entry]:
    """The ledger of a run on this job; digests by the definition, each sample taken by itself."""
    catalog = read_catalog(job.data.train, job.task.columns)
    order = catalog.order(seed=job.seed, shuffle=True, window=job.data.window)
    table = pq.read_table(Path(job.data.train) / "a.parquet")
    ids, x = table["id"].to_numpy(), table["x"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
    starts = np.cumsum([0, *(g.rows for g in catalog.groups)])
    reads = {"positions": [[1, BATCH]], "total_steps": STEPS}
    begin: Entry = {"kind": "start", "samples": ROWS, "data_digest": catalog.digest, **reads}
    entries = [begin, {"kind": "view", "number": 1, "first_step": 1, "members": [{"id": "w0"}, {"id": "w1"}]}]
    for step in range(1, STEPS + 1):
        places = [order.sample(p) for p in range((step - 1) * BATCH, step * BATCH)]
        rows = [int(starts[group]) + row for group, row in places]
        samples = {"id": ids[rows], "x": x[rows]}
        halves = [shard_digests({n: c[a : a + 4] for n, c in samples.items()}, 2) for a in (0, 4)]
        entries.append(
            {"kind": "commit", "step": step, "view": 1, "samples": [(step - 1) * BATCH, step * BATCH],
             "epoch": step * BATCH / ROWS, "loss": 1.0, "samples_digest": step_digest(halves)}
        )  # fmt: skip
    return [*entries, {"kind": "end", "status": "finished"}]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes the run folder with the honest ledger, changed by a function."""
    write_data(tmp_path / "data")
    job = job_on(tmp_path / "data")

    def made(change: Callable[[list[Entry]], Any] = lambda entries: None, **run: Any) -> RunFolder:
        folder = RunFolder(tmp_path / "runs" / "plain-1")
        folder.path.mkdir(parents=True)
        folder.update(run_id="plain-1", name="plain", status="finished", total_steps=STEPS, **run)
        save_job(folder, job, None)
        entries = honest(job)
        change(entries)
        ledger = Ledger(folder.ledger)
        ledger.append(entries)
        ledger.close()
        return folder

    return made


def test_an_honest_run_is_proved(make: Callable[..., RunFolder]) -> None:
    found = audit_run(make())
    assert found.clean, lines(found)
    assert found.content is not None
    assert (found.content.equal, found.content.unknown) == (STEPS, 0)
    assert (found.orders, found.epochs and found.epochs.complete) == (4, 3)
    assert lines(found) == [
        "plain-1: clean",
        "  steps     1 to 20, each committed once, in 1 view of 2 workers",
        "  epochs    3 complete, each of 50 samples exactly once; of epoch 4 positions [10, 50) are to come",
        "  epochs    the data order permutes the samples of all 4 epochs that these steps touch",
        "  content   20 of 20 steps (1 to 20) read again: their samples are those recorded",
    ]  # fmt: skip
    said = json.loads(json.dumps(as_json(found)))
    assert (said["clean"], said["epochs"]["to_come"], said["content"]["equal"]) == (True, [10, 50], 20)


def test_other_samples_are_named_by_step(make: Callable[..., RunFolder]) -> None:
    def swap(entries: list[Entry]) -> None:
        a, b = entries[7], entries[8]
        a["samples_digest"], b["samples_digest"] = b["samples_digest"], a["samples_digest"]
        del entries[12]["samples_digest"]

    found = audit_run(make(swap))
    assert [(f.kind, f.steps) for f in found.faults] == [("content", (6, 7))]
    assert found.content is not None
    assert (found.content.equal, found.content.unknown) == (STEPS - 3, 1)
    assert "NOT clean: 1 fault" in lines(found)[0]
    assert "steps 6 to 7 were run on other samples than those of the data order" in lines(found)[1]


def test_only_some_steps_are_read_again(make: Callable[..., RunFolder]) -> None:
    folder = make(lambda entries: entries[3].update(samples_digest="0" * 15 + "1"))
    within = audit_run(folder, within=(5, 9))
    assert within.clean
    assert within.content is not None
    assert (within.content.first, within.content.last, within.content.equal) == (5, 9, 5)
    assert within.orders == 2
    assert not audit_run(folder, within=(2, 2)).clean
    assert audit_run(folder, within=(400, 500)).clean


def test_the_ledger_alone_needs_no_data(make: Callable[..., RunFolder], tmp_path: Path) -> None:
    folder = make()
    (tmp_path / "data" / "a.parquet").unlink()
    assert audit_run(folder, content=False).clean
    found = audit_run(folder)
    assert not found.clean
    assert "not proven" in lines(found)[0]
    assert "holds no Parquet files" in found.unproven


def test_other_data_is_refused_and_not_compared(make: Callable[..., RunFolder]) -> None:
    found = audit_run(make(lambda entries: entries[0].update(data_digest="f" * 64)))
    assert not found.clean
    assert "is not what the run was trained on" in found.unproven


def test_the_command(make: Callable[..., RunFolder], tmp_path: Path) -> None:
    make()
    runs = ["--runs", str(tmp_path / "runs")]
    good = CliRunner().invoke(command, ["audit", "plain-1", *runs])
    assert (good.exit_code, good.output.splitlines()[0]) == (0, "plain-1: clean")
    ledger = tmp_path / "runs" / "plain-1" / "ledger.jsonl"
    ledger.write_text("".join(line for line in ledger.read_text().splitlines(True) if '"step":4,' not in line))
    bad = CliRunner().invoke(command, ["audit", "plain-1", "--no-content", "--json", *runs])
    said = json.loads(bad.stdout)
    assert bad.exit_code == 1
    assert [f["text"] for f in said["faults"]] == [
        "step 4 was never committed: samples [24, 32)", "epoch 1: positions never used [24, 32)",
    ]  # fmt: skip


@pytest.mark.parametrize(("start", "stop", "size"), [(0, 160, 8), (24, 104, 16), (48, 56, 8), (0, 160, 40)])
def test_slices_follow_the_order_over_windows_and_epochs(tmp_path: Path, start: int, stop: int, size: int) -> None:
    write_data(tmp_path / "d")
    catalog = read_catalog(str(tmp_path / "d"), ["id"])
    order = catalog.order(seed=1, window=16)
    first = np.cumsum([0, *(g.rows for g in catalog.groups)])
    want = [int(first[g]) + r for g, r in map(order.sample, range(start, stop))]
    parts = [s["id"] for s in Reading([catalog], [order]).slices(start, stop, repeat(size, (stop - start) // size))]
    assert {len(p) for p in parts} == {size}
    assert np.concatenate(parts).tolist() == want


def test_an_order_that_loses_a_row_group_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(group_rows=(3, 4, 5, 6), seed=0, window=7)
    assert check_order(order, range(1, 5)) == []
    real = Order.window_at

    def wrong(self: Order, position: int) -> Window:
        window = real(self, position)
        return replace(window, groups=tuple(0 for _ in window.groups)) if position == 18 else window

    monkeypatch.setattr(Order, "window_at", wrong)
    (fault,) = check_order(order, range(1, 5))
    assert fault.text.startswith("the order of epoch 2 is none")
