"""Which stretch is computed again, from where, and what is refused. The computing itself is tested with a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import shoal
from shoal.cli.main import shoal as command
from shoal.coordinator.status import Outcome
from shoal.errors import ConfigError, TrainingFailed
from shoal.job.store import job_digest, load_job, save_job
from shoal.launch import verify as module
from shoal.launch.api import RunOptions
from shoal.launch.verify import VerifyOptions, choose, verify
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import Ledger
from shoal.tracking.owner import owner
from shoal.tracking.runs import list_runs
from tests.support.plain_task import Plain
from tests.support.runs import Listener
from tests.support.states import full_state, save

pytestmark = pytest.mark.unit

STEPS = 12


def job(**changes: Any) -> shoal.Job:
    parts: dict[str, Any] = {
        "name": "plain",
        "task": Plain(),
        "data": shoal.Data(train="nowhere"),
        "budget": shoal.Budget(steps=STEPS),
        "numerics": "exact",
        "workers": shoal.Workers(min=1, max=3),
    }
    return shoal.Job(**{**parts, **changes})


def commit(step: int, **more: Any) -> dict[str, Any]:
    samples = [(step - 1) * 64, step * 64]
    values = {"loss": 1.0 / step, "lr": 1e-3, "grad_norm": 0.3, **more}
    return {"kind": "commit", "step": step, "view": 1, "samples": samples, **values}


def made(path: Path, job: shoal.Job, first: int, last: int, checkpoints: tuple[int, ...], seed: int = 0) -> RunFolder:
    folder = RunFolder(path)
    folder.path.mkdir(parents=True)
    folder.update(run_id=path.name, status="finished", total_steps=STEPS, job_digest=job_digest(job),
                  checkpoint_uri=str(folder.checkpoints))  # fmt: skip
    save_job(folder, job, None)
    ledger = Ledger(folder.ledger)
    ledger.append([commit(s) for s in range(first, last + 1)])
    ledger.close()
    for step in checkpoints:
        save(folder.checkpoints, step, full_state(seed))
    return folder


@pytest.fixture
def recorded(tmp_path: Path) -> RunFolder:
    return made(tmp_path / "runs" / "plain-1", job(), 1, STEPS, (4, 8, STEPS))


class Again:
    """Stands in for `run_job`: notes what it is asked, and leaves what a run would leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.job: shoal.Job | None = None
        self.options = RunOptions()
        self.seed = 0
        self.wrong: dict[str, Any] | None = None
        self.until: int | None = None
        self.seen_meanwhile: list[str] = []
        monkeypatch.setattr(module, "run_job", self)

    def __call__(self, job: shoal.Job, *, options: RunOptions, display: Any) -> Outcome:
        self.job, self.options = job, options
        assert options.scratch is not None
        assert options.name is not None
        first = options.start_from.step + 1 if options.start_from else 1
        last = self.until or options.until_step or 0
        folder = made(options.scratch / options.name, job, first, last, (last,), self.seed)
        if self.wrong:
            ledger = Ledger(folder.ledger)
            ledger.append([self.wrong])
            ledger.close()
        self.seen_meanwhile = [r.run_id for r in list_runs(options.runs_dir)]
        return Outcome(status="stopped", run_id=options.name, folder=str(folder.path), step=last, error="no CPU")


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> Again:
    return Again(monkeypatch)


def test_the_whole_run_from_its_initial_weights(recorded: RunFolder, again: Again) -> None:
    found = verify(recorded, VerifyOptions(workers=1), Listener())
    assert found.identical, found.lines()
    assert (again.options.start_from, again.options.until_step) == (None, STEPS)
    assert again.job is not None
    assert (again.job.workers.min, again.job.workers.max) == (1, 1)
    assert again.job.budget == job().budget, "the learning rate is a function of the progress in the whole budget"
    assert (again.job.evaluation.every, again.job.checkpoints.every, again.job.checkpoints.export) == (
        None,
        None,
        False,
    )
    assert found.lines()[0] == "plain-1: identical"
    assert "steps 1 to 12 from the initial weights, on 1 worker" in found.lines()[1]
    assert found.state is not None
    assert f"SHA-256 {found.state[0]}" in found.lines()[-1]


def test_nothing_is_listed_and_nothing_stays(recorded: RunFolder, again: Again) -> None:
    verify(recorded, VerifyOptions(), Listener())
    assert again.seen_meanwhile == ["plain-1"]
    assert [p.name for p in recorded.root.iterdir()] == ["plain-1"]


@pytest.mark.parametrize(
    ("steps", "first", "last", "source", "goal"),
    [
        (None, 1, 12, None, 12),
        ((3, 6), 1, 6, None, None),
        ((5, 8), 5, 8, 4, 8),
        ((7, 7), 5, 7, 4, None),
        ((9, 1 << 62), 9, 12, 8, 12),
        ((12, 12), 9, 12, 8, 12),
    ],
)
def test_the_stretch_begins_with_the_nearest_state_before_it(
    recorded: RunFolder, steps: tuple[int, int] | None, first: int, last: int, source: int | None, goal: int | None
) -> None:
    found = choose(recorded, load_job(recorded), steps)
    assert (found.first, found.last) == (first, last)
    assert (found.source.step if found.source else None) == source
    assert (found.goal.step if found.goal else None) == goal


def test_a_run_that_began_with_another_runs_checkpoint(recorded: RunFolder, tmp_path: Path) -> None:
    fork = made(tmp_path / "runs" / "fork", job(), 5, 7, ())
    fork.update(forked_from=str(recorded.checkpoints / "step-00000004"))
    ledger = Ledger(fork.ledger)
    ledger.append([{"kind": "resume", "from_step": 4}, *(commit(s) for s in (5, 6, 7))])
    ledger.close()
    found = choose(fork, load_job(fork), None)
    assert (found.first, found.last, found.source and found.source.step) == (5, 7, 4)
    with pytest.raises(ConfigError, match="has steps 5 to 7, not 3 to 7"):
        choose(fork, load_job(fork), (3, 9))
    (recorded.checkpoints / "step-00000004" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="the one that it began with cannot be read"):
        choose(fork, load_job(fork), None)


def test_the_first_difference_is_named_with_both_values(recorded: RunFolder, again: Again) -> None:
    again.wrong = commit(7, loss=0.5)
    found = verify(recorded, VerifyOptions(steps=(6, 10)), Listener())
    assert not found.identical
    assert found.lines()[0] == "plain-1: NOT identical"
    assert "step 7: loss was 0.14285714285714285, now 0.5 (relative difference 2.5)" in found.lines()[2]
    assert json.loads(json.dumps(found.to_json()))["difference"]["step"] == 7


def test_equal_numbers_with_another_state_are_not_identical(recorded: RunFolder, again: Again) -> None:
    again.seed = 1
    found = verify(recorded, VerifyOptions(steps=(5, 8)), Listener())
    assert found.difference is None
    assert not found.identical
    assert "differs: SHA-256 was" in found.lines()[-1]


def test_a_stretch_that_could_not_be_computed_is_no_verdict(recorded: RunFolder, again: Again) -> None:
    again.until = 6
    with pytest.raises(TrainingFailed, match="stopped after step 6 of 12: no CPU"):
        verify(recorded, VerifyOptions(), Listener())
    assert not (recorded.root / ".verify").exists()


def test_fast_numerics_need_a_tolerance(tmp_path: Path, again: Again) -> None:
    fast = made(tmp_path / "runs" / "fast", job(numerics="fast"), 1, STEPS, (STEPS,))
    with pytest.raises(ConfigError, match=r"numerics=fast.*--tolerance 1e-3"):
        verify(fast, VerifyOptions(), Listener())
    again.wrong = commit(7, loss=1.0 / 7 * (1 + 1e-6))
    found = verify(fast, VerifyOptions(tolerance=1e-3), Listener())
    assert (found.identical, found.state) == (True, None)
    assert found.lines()[0] == "fast: equal within 0.001"


@pytest.mark.parametrize(
    ("options", "spoil", "message"),
    [
        (VerifyOptions(steps=(20, 30)), None, "has steps 1 to 12, not 20 to 12"),
        (VerifyOptions(workers=9), None, "workers.max=9 is more than batch.virtual_shards=8"),
        (VerifyOptions(), {"job_digest": "0" * 64}, "is not what it was"),
    ],
)
def test_what_cannot_be_is_refused(
    recorded: RunFolder, again: Again, options: VerifyOptions, spoil: dict[str, Any] | None, message: str
) -> None:
    recorded.update(**(spoil or {}))
    with pytest.raises(ConfigError, match=message):
        verify(recorded, options, Listener())
    assert again.job is None


def test_the_command(recorded: RunFolder, again: Again) -> None:
    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(command, ["verify", "plain-1", "--runs", str(recorded.root), *arguments])

    good = invoke("--steps", "5:8", "--workers", "2")
    assert (good.exit_code, good.stdout.splitlines()[0]) == (0, "plain-1: identical")
    again.wrong = commit(7, loss=0.5)
    bad = invoke("--json")
    assert (bad.exit_code, json.loads(bad.stdout)["identical"]) == (1, False)


def test_the_last_verifications_leftovers_are_removed(recorded: RunFolder, again: Again) -> None:
    dead = made(recorded.root / ".verify" / "verify-plain-1-1", job(), 1, 2, ())
    dead.update(status="running", owner={**owner(), "started": 1.0})
    verify(recorded, VerifyOptions(), Listener())
    assert not dead.path.exists()
