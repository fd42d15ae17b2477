"""What a member trains on does not depend on how the virtual shards are divided; it alone, without a process group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shoal.engines import make_engine
from shoal.errors import TaskError
from shoal.job import Job
from shoal.optim.schedules import learning_rate
from shoal.worker.selecting import Selected, Selector
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import EXACT, difference, make_job
from tests.support.engine_runs import TOTAL, plain, run_step
from tests.support.engine_selection import plain_selecting, selecting, train_selecting, work_of

pytestmark = pytest.mark.unit


def alone(job: Job) -> Any:
    engine = make_engine(job, torch.device("cpu"))
    engine.form(0, 1)
    return engine


def select(engine: Any, job: Job, bounds: tuple[int, ...], rank: int, step: int = 1) -> Selected:
    work = work_of(job, step, (bounds[rank], bounds[rank + 1]))
    return Selector(job, bounds, rank).select(engine, work, lambda: None)


@pytest.mark.parametrize("rule", ["importance", "hardest"])
def test_any_division_chooses_the_same(rule: str) -> None:
    job = selecting(make_job(tasks.Telling(), "replicated"), rule=rule)
    engine = alone(job)
    whole = select(engine, job, (0, 8), 0)
    assert [len(part) for part in whole.scores] == [6] * 8, "one by one, until the model is known"
    assert len(whole.samples["x"]) == job.batch.size
    for bounds in ((0, 1, 8), (0, 2, 4, 6, 8), (0, 5, 7, 8)):
        parts = [select(engine, job, bounds, rank) for rank in range(len(bounds) - 1)]
        for name, column in whole.samples.items():
            assert column.tobytes() == b"".join(part.samples[name].tobytes() for part in parts)
        assert torch.equal(torch.cat(whole.scores), torch.cat([s for part in parts for s in part.scores]))
        if rule == "importance":
            assert whole.weights is not None
            assert torch.equal(whole.weights, torch.cat([p.weights for p in parts if p.weights is not None]))
        else:
            assert [p.weights for p in (whole, *parts)] == [None] * (len(parts) + 1)


def test_the_hardest_of_each_shard_are_taken_until_it_is_switched_off() -> None:
    job = selecting(make_job(tasks.Telling(), "replicated"), rule="hardest")
    engine = alone(job)
    selected, read = select(engine, job, (0, 8), 0), work_of(job, 1, (0, 8)).samples
    scores = torch.cat(selected.scores).numpy().reshape(8, 6)
    places = [shard * 6 + np.sort(np.argsort(-row)[:3]) for shard, row in enumerate(scores)]
    assert np.array_equal(selected.samples["x"], read["x"][np.concatenate(places)])
    last = select(engine, job, (0, 8), 0, step=5)
    assert last.scores
    after = work_of(job, 6, (0, 8))
    assert (after.lease.start, len(after.samples["x"])) == (5 * 48, 24)
    off = Selector(job, (0, 8), 0).select(engine, after, lambda: None)
    assert (off.samples, off.weights, off.scores) == (after.samples, None, ())


def test_scoring_leaves_the_step_under_way_as_it_is() -> None:
    """Also between two passes, and with batch norm, dropout and a first step in which all buffers are watched."""
    job = make_job(tasks.Telling(), "replicated")
    engine = alone(job)
    right = plain(job, 3, by_shard=True)[0]
    real = engine.micro_step

    def disturbed(batch: Any, share: float, **more: Any) -> torch.Tensor:
        before = engine.score(batch)
        loss = real(batch, share, **more)
        assert torch.equal(engine.score(batch), before), "the values that the step began with"
        return loss

    engine.micro_step = disturbed
    for step in (1, 2, 3):
        run_step(engine, job, 0, 1, step)
        assert all(module.training for module in engine.model.modules())
        engine.update(learning_rate(job.optimizer.lr, job.schedule, step / TOTAL))
    assert difference({**engine.full_parameters(), **dict(engine.model.named_buffers())}, right) < EXACT


@pytest.mark.parametrize("rule", ["importance", "hardest"])
def test_the_same_as_by_the_definition(rule: str) -> None:
    job = selecting(make_job(tasks.Telling(), "replicated"), rule=rule)
    right, norms, scores = plain_selecting(job, 8)
    found = train_selecting({}, 0, 1, job, 8)
    assert found.shard is not None
    assert difference({**found.parameters, **found.shard.buffers}, right) < EXACT
    assert found.norms == pytest.approx(norms, rel=EXACT)
    assert found.metrics["scores"] == pytest.approx(scores, rel=EXACT)


def test_a_task_that_fails_is_named() -> None:
    class Wrong(tasks.Telling):
        def sample_losses(self, model: Any, batch: Any) -> Any:
            return model(batch["x"])

    class Failing(tasks.Telling):
        def sample_losses(self, model: Any, batch: Any) -> Any:
            return batch["none"]

    for task, said in ((Wrong(), r"sample_losses\(\) returned \[3, 1\]"), (Failing(), "failed in sample_losses")):
        job = make_job(task, "replicated")
        with pytest.raises(TaskError, match=said):
            alone(job).score({"x": torch.zeros(3, 12), "y": torch.zeros(3, 1)})
