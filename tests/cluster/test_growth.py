"""Batches that grow while workers die: the same steps, the same bits, every sample once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.audit.run import audit_run
from shoal.coordinator.status import Outcome
from shoal.launch.verify import VerifyOptions, verify
from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from tests.support.faults import Fault, Faulty
from tests.support.runs import Listener, commits, digits, ledger, run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


def of_each(outcome: Outcome, *names: str) -> list[list[Any]]:
    found = commits(outcome)
    assert [c["step"] for c in found] == list(range(1, len(found) + 1))
    return [[c.get(name) for name in names] for c in found]


def state_of(outcome: Outcome) -> str:
    assert outcome.checkpoint is not None
    with CheckpointReader(outcome.checkpoint) as reader:
        return state_digest(reader)


def test_milestones_stand_through_a_kill(tmp_path: Path) -> None:
    job = digits(
        Faulty(faults=(Fault("SIGKILL", 1, 6, "backward"),), folder=str(tmp_path)),
        batch=shoal.Batch(size=16, virtual_shards=8, growth=shoal.Milestones(((0.4, 32), (0.8, 64)))),
        budget=shoal.Budget(steps=10),
        schedule=shoal.Constant(warmup=0.0),
    )
    outcome, _ = run(job, tmp_path)
    assert outcome.status == "finished", outcome.error
    assert any(e["kind"] == "loss" for e in ledger(outcome))
    sizes = [16] * 4 + [32] * 4 + [64] * 2
    starts = [sum(sizes[:i]) for i in range(11)]
    rates = [1e-2 * (n / 16) ** 0.5 for n in sizes]
    assert of_each(outcome, "batch", "samples") == [
        [n, [a, b]] for n, a, b in zip(sizes, starts, starts[1:], strict=False)
    ]
    assert [c["lr"] for c in commits(outcome)] == pytest.approx(rates)
    assert audit_run(RunFolder(Path(outcome.folder))).clean


def test_what_the_measured_noise_decides_is_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    job = digits(
        Faulty(faults=(Fault("SIGKILL", 1, 7, "backward"),), folder=str(tmp_path)),
        numerics="exact",
        batch=shoal.Batch(
            size=16, virtual_shards=8, growth=shoal.ByNoise(most=64, every=3, threshold=4.0), lr_rule="linear"
        ),
        budget=shoal.Budget(samples=500),
        checkpoints=shoal.Checkpoints(every=5, keep_last=None, export=False),
    )
    churned, _ = run(job, tmp_path, until_step=13)
    churned, _ = run(job, tmp_path, resume=Path(churned.folder).name)
    assert churned.status == "finished", churned.error
    assert any(e["kind"] == "loss" for e in ledger(churned))
    alone, _ = run(shoal.Job(**{**_fields(job), "workers": shoal.Workers(min=1, max=1)}), tmp_path)
    names = ("batch", "samples", "progress", "loss", "lr", "grad_norm", "noise", "noise_scale", "critical_batch")
    found = of_each(alone, *names)
    assert of_each(churned, *names) == found
    assert [f[0] for f in found] == sorted(f[0] for f in found)
    assert found[-1][0] > 16, "it has grown"
    assert found[-1][1][1] >= 500 > found[-2][1][1]
    assert found[-1][2] == 1.0
    assert state_of(churned) == state_of(alone)
    decided = [[(e["step"], e["size"], e["why"]) for e in ledger(o) if e["kind"] == "batch"] for o in (churned, alone)]
    assert decided[0] == decided[1]
    for outcome in (churned, alone):
        assert audit_run(RunFolder(Path(outcome.folder))).clean
    last = commits(churned)[-1]["step"]
    again = verify(RunFolder(Path(churned.folder)), VerifyOptions(workers=1, steps=(6, last)), Listener())
    assert again.identical, again.lines()
    assert again.state is not None


def _fields(job: shoal.Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__slots__}
