"""Runs that are looked at from another process: what is said without their cluster. With one: tests/cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shoal.cli.main import run as main
from shoal.cli.main import shoal as command
from shoal.coordinator.status import Outcome, RunStatus
from shoal.errors import CapacityError, ConfigError
from shoal.launch.control import attach, is_running, line_to
from shoal.launch.supervise import died, outcome_of
from shoal.run_folder import RunFolder, write_json
from shoal.tracking.ledger import Ledger
from shoal.tracking.owner import owner
from tests.support.ledgers import checkpoint, churning_run, commit, view
from tests.support.runs import Listener

pytestmark = pytest.mark.unit


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunFolder]:
    def made(entries: Any = (), *, alive: bool = False, **run: Any) -> RunFolder:
        folder = RunFolder(tmp_path / "runs" / "gpt-1")
        folder.path.mkdir(parents=True)
        who = owner() if alive else {**owner(), "started": 1.0}
        folder.update(**{"run_id": "gpt-1", "total_steps": 400, "status": "running", "owner": who, **run})
        write_json(folder.job, {"values": {"batch.virtual_shards": "8"}})
        ledger = Ledger(folder.ledger)
        ledger.append(list(entries))
        ledger.close()
        return folder

    return made


def ask(folder: RunFolder, *arguments: str) -> Result:
    return CliRunner().invoke(command, [arguments[0], "gpt-1", *arguments[1:], "--runs", str(folder.root)])


def ended(status: str) -> list[dict[str, Any]]:
    return [view(1.0, 1, 2, 1, "start"), commit(1, 2.0), commit(2, 3.0), {"kind": "end", "time": 4.0, "status": status}]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (ended("finished"), "is not running: it finished after 2 of 400 steps; its numbers: shoal status gpt-1"),
        (ended("stopped"), "is not running: it was stopped after 2 of 400 steps; go on with: shoal resume gpt-1"),
        (ended("failed"), "is not running: it failed after 2 of 400 steps; go on with: shoal resume gpt-1"),
        (ended("failed")[:-1], "its process is gone after 2 of 400 steps; go on with: shoal resume gpt-1"),
    ],
)
def test_a_run_that_does_not_go_on_says_why_and_what_to_do(
    make: Callable[..., RunFolder], entries: list[dict[str, Any]], said: str
) -> None:
    folder = make(entries)
    assert not is_running(folder)
    with pytest.raises(ConfigError, match=said), line_to(folder):
        pass


def test_what_to_do_instead_of_scaling_a_stopped_run(make: Callable[..., RunFolder]) -> None:
    result = ask(make(ended("stopped")), "scale", "2:6")
    assert "shoal resume gpt-1 --set workers.min=2 --set workers.max=6" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("scale", "6:2"), "min=6 is more than max=2; write 2:6"),
        (("scale", "0"), "at least 1 worker; `shoal stop RUN` ends it"),
        (("scale", "two"), "write 4, or 2:6"),
        (("scale", "2:9"), "9 workers are more than the 8 virtual shards"),
        (("attach", "--json", "--quiet"), "exclude each other"),
    ],
)
def test_wishes_that_cannot_be_are_refused_before_anybody_is_asked(
    make: Callable[..., RunFolder], arguments: tuple[str, ...], said: str
) -> None:
    result = ask(make(alive=True, address="127.0.0.1:1"), *arguments)
    assert said in result.output + str(result.exception)


def test_a_cluster_that_is_not_there_is_noticed_at_once(make: Callable[..., RunFolder]) -> None:
    folder = make(ended("failed")[:-1], alive=True, address="127.0.0.1:1")
    assert is_running(folder)
    with (
        pytest.raises(CapacityError, match=r"in the Ray cluster at 127.0.0.1:1, which cannot be reached"),
        line_to(folder),
    ):
        pass


def test_a_run_that_has_no_cluster_yet(make: Callable[..., RunFolder]) -> None:
    with pytest.raises(ConfigError, match="has not reached its cluster yet"), line_to(make(alive=True)):
        pass


def test_attaching_to_a_run_that_is_over_tells_its_outcome(make: Callable[..., RunFolder]) -> None:
    class Kept(Listener):
        told: Outcome | None = None

        def finished(self, outcome: Outcome) -> None:
            self.told = outcome

    folder, display = make(churning_run(1_000.0), status="finished", export_uri="/runs/gpt-1/model"), Kept()
    outcome = attach(folder, display)
    assert display.told is outcome
    assert (outcome.status, outcome.step, outcome.exit_code, outcome.model) == ("finished", 400, 0, "/runs/gpt-1/model")
    assert {"train/loss", "val/loss"} <= set(outcome.metrics)


def test_attaching_to_a_run_that_ends_just_then_tells_its_outcome(
    make: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(ended("stopped")[:-1], alive=True, address="127.0.0.1:1")

    @contextmanager
    def late(run: RunFolder) -> Iterator[Any]:
        ledger = Ledger(run.ledger)
        ledger.append(ended("stopped")[-1:])
        ledger.close()
        run.update(status="stopped")
        with line_to(run) as line:
            yield line

    monkeypatch.setattr("shoal.launch.control.line_to", late)
    assert (attach(folder, Listener()).status, folder.read()["status"]) == ("stopped", "stopped")


def test_attaching_to_a_run_that_died_says_how_to_go_on(make: Callable[..., RunFolder]) -> None:
    with pytest.raises(ConfigError, match=r"its process is gone.*shoal resume gpt-1"):
        attach(make(ended("failed")[:-1]), Listener())


def test_a_coordinator_that_somebody_else_saw_off_did_not_die(make: Callable[..., RunFolder]) -> None:
    folder = make(ended("finished"))
    assert died(folder, RuntimeError("actor is gone")).status == "finished"
    assert outcome_of(folder) is not None
    assert folder.read()["status"] == "running", "what others wrote is left alone"


def test_a_coordinator_that_died_leaves_the_last_checkpoint(make: Callable[..., RunFolder]) -> None:
    outcome = died(make(ended("finished")[:-1]), RuntimeError("actor is gone\nand more"))
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert "the coordinator died (actor is gone); continue" in (outcome.error or "")


def test_the_status_of_a_run_that_is_over(make: Callable[..., RunFolder]) -> None:
    folder = make([*ended("stopped")[:-1], checkpoint(2, 3.5), ended("stopped")[-1]])
    said = ask(folder, "status").output.splitlines()
    assert said[0].startswith("gpt-1: stopped · step 2/400 · loss")
    assert said[1].split() == ["worker", "state", "rank", "where"]
    assert said[2].split() == ["w1", "member", "0", "10.0.0.4"]
    value = json.loads(ask(folder, "status", "--json").output)
    assert (value["status"], value["step"], [m["member"] for m in value["members"]]) == ("stopped", 2, ["w1", "w2"])


def test_the_status_of_a_run_whose_cluster_cannot_be_asked(make: Callable[..., RunFolder]) -> None:
    result = ask(make(ended("failed")[:-1], alive=True, address="127.0.0.1:1"), "status")
    assert result.exit_code == 0
    assert "from its files alone, because run gpt-1 says that it runs in the Ray cluster" in result.stderr
    assert result.stdout.startswith("gpt-1: running · step 2/400")


def test_watching_a_run_that_is_over_shows_it_once(make: Callable[..., RunFolder]) -> None:
    said = ask(make(ended("finished")), "status", "--watch", "--json").output.splitlines()
    assert len(said) == 1


def test_the_run_cannot_outlive_a_cluster_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = str(Path(__file__).parents[3] / "jobs" / "digits.py")
    for option in (["--detach"], ["--if-detached", "continue"]):
        assert main(["train", recipe, "--runs", str(tmp_path / "runs"), *option]) == 2
        assert "cannot outlive its command" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_listeners_take_the_new_fields() -> None:
    assert RunStatus(phase="waiting", message="1 of 2 workers", news=3).news == 3
