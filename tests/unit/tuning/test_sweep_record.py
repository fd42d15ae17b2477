"""A sweep and its trials in MLflow: a real SQLite store, read back through MLflow's own client."""

from __future__ import annotations

import json
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest
from click.testing import CliRunner

from shoal.cli.main import shoal
from shoal.errors import ConfigError
from shoal.job.fields import recorded_values
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import Ledger
from shoal.tracking.points import Progress
from shoal.tracking.recorder import Recorder
from shoal.tracking.settings import RecordSettings, TrialOf, better
from shoal.tuning.ledger import FILE
from shoal.tuning.links import children_link, compare_link, links, newest_sweep, where_recorded
from shoal.tuning.record import FAILED, SweepRecord, parcels, send_sweep
from shoal.tuning.trials import SweepState, read
from shoal.tuning.view import VIEW_TAG, view
from tests.support.mlflow_store import history, wait_until
from tests.support.sweeps import entries, facts, write_sweep

pytestmark = pytest.mark.unit

NOWHERE = "http://127.0.0.1:9"
HERE = Path("sweep")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def settings_of_trial(folder: RunFolder, trial: TrialOf, uri: str) -> RecordSettings:
    return RecordSettings(
        runs=folder.root, experiment=trial.experiment, run_name=folder.run_id, tracking_uri=uri, params={"a": "1"},
        tags=trial.tags, trial=trial,
    )  # fmt: skip


def record_trials(record: SweepRecord, state: SweepState, uri: str) -> None:
    """What the trials' coordinators do."""
    for row in state.rows:
        folder = RunFolder(Path(row.folder))
        recorder = Recorder(folder, settings_of_trial(folder, record.trial(row.number), uri))
        recorder.start()
        recorder.close(deadline_s=60)


def place(folder: Path) -> dict[str, str]:
    return RunFolder(folder).read()["mlflow"]


def test_one_parent_and_one_child_for_each_trial(tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    folder = write_sweep(tmp_path, 6, began=time.time() - 600)
    state, record = read(folder / FILE), SweepRecord(folder, facts(6), tracking_uri=store)
    record_trials(record, state, store)
    record.start()
    assert record.close("finished", deadline_s=60) == 0, record.problem

    client = MlflowClient(store)
    parent = client.get_run(place(folder)["run_id"])
    found = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    children = {int(run.data.tags["shoal.trial"]): run for run in found}
    assert sorted(children) == list(range(6))
    statuses = {"finished": "FINISHED", "stopped-early": "KILLED", "failed": "FAILED"}
    for row in state.rows:
        run = children[row.number]
        assert run.info.status == statuses[row.status]
        assert run.data.tags["shoal.sweep"] == "lr_schedule"
        assert run.data.tags["stop_reason"] == (row.reason or "budget used")
        if row.curve:
            assert run.data.metrics["best_val_loss"] == row.best
            bests = [v for _, v in history(store, run.info.run_id, "best_val_loss")]
            assert bests == sorted(bests, reverse=True)
    assert children[2].data.tags["error"] == state.rows[2].reason
    assert "error" not in children[0].data.tags

    best = state.best
    assert best is not None
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "lr_schedule")
    assert parent.data.metrics["best_val_loss"] == best.best
    assert [s for s, _ in history(store, parent.info.run_id, "trials/failed")] == list(range(1, 7))
    assert parent.data.metrics["trials/failed"] == 1
    assert parent.data.metrics["cost/worker_seconds"] == pytest.approx(state.spent("worker_seconds"))
    assert parent.data.metrics["cost/dollars"] == pytest.approx(state.spent("dollars"))
    assert parent.data.params["space.optimizer.lr"] == "0.0001 to 0.03, log scale"
    assert (parent.data.tags["best.trial"], parent.data.tags["best.run"]) == (str(best.number), best.run_id)
    assert f"schedule={best.fields['schedule']}" in parent.data.tags["best.fields"]
    assert parent.data.tags[FAILED].startswith("2: RuntimeError: CUDA out of memory")
    assert {p.path for p in client.list_artifacts(parent.info.run_id)} == {"report.html", "best.py", "sweep.json"}
    assert json.loads((folder / "sweep.json").read_text())["best"] == best.number
    shared = client.get_experiment(parent.info.experiment_id).tags[VIEW_TAG + parent.info.run_id]
    assert json.loads(shared)["searchFilter"] == f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"


def test_a_dead_server_stops_nothing_and_all_is_sent_later(tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    folder = write_sweep(tmp_path, 4, began=time.time() - 600)
    state, record = read(folder / FILE), SweepRecord(folder, facts(4), tracking_uri=NOWHERE)
    begun = time.monotonic()
    record.start()
    assert record.close("finished", deadline_s=2) > 0
    assert time.monotonic() - begun < 60
    assert record.problem
    assert (folder / "report.html").exists(), "the report needs no MLflow"
    # The server is back, at another address.
    again = SweepRecord(folder, facts(4), tracking_uri=store)
    record_trials(again, state, store)
    for run in (folder / "record.json", *(Path(r.folder) / "record.json" for r in state.rows)):
        assert json.loads(run.read_text())["uri"] == store
    said = CliRunner().invoke(shoal, ["runs", "send", "lr_schedule", "--runs", str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert said.output.splitlines()[0].startswith("lr_schedule: ")
    assert said.output.splitlines()[0].endswith(" entries sent")
    assert [count for _, count in send_sweep(folder)] == [0] * 5
    parent = MlflowClient(store).get_run(place(folder)["run_id"])
    assert parent.info.status == "FINISHED"
    children = MlflowClient(store).search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert len(children) == 4, "trials that were recorded first made their parent"


def test_a_resumed_sweep_goes_on_in_the_same_run(tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    folder = write_sweep(tmp_path, 4, began=time.time() - 600, with_runs=False)
    ledger = folder / FILE
    whole = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(whole[: len(whole) // 2]))
    first = SweepRecord(folder, facts(4), tracking_uri=store)
    first.start()
    first.close("stopped", deadline_s=60)
    run = place(folder)["run_id"]
    ledger.write_bytes(b"".join(whole))
    second = SweepRecord(folder, facts(8), tracking_uri=store)
    second.start()
    assert second.close("finished", deadline_s=60) == 0
    assert place(folder)["run_id"] == run
    parent = MlflowClient(store).get_run(run)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["resumed.trials"] == "4 -> 8"
    steps = [s for s, _ in history(store, run, "trials/finished")]
    assert steps == [1, 2, 3, 4], "no end of a trial is shown twice"


def test_sweeps_of_one_name_in_two_places_are_two_runs(tmp_path: Path, store: str) -> None:
    found = []
    for where in ("here", "there"):
        folder = write_sweep(tmp_path / where, 4, began=time.time() - 600, with_runs=False)
        record = SweepRecord(folder, facts(4), tracking_uri=store)
        record.start()
        assert record.close("finished", deadline_s=60) == 0
        found.append(place(folder)["run_id"])
    assert len(set(found)) == 2


def test_a_sweep_whose_process_died_is_closed_by_the_next_one(tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    dead = write_sweep(tmp_path, 4, began=time.time() - 600, over=False, with_runs=False)
    record = SweepRecord(dead, facts(4), tracking_uri=store)
    record.start()
    wait_until(lambda: "mlflow" in RunFolder(dead).read(), 60, "the connection to MLflow")
    record.close("running", deadline_s=60)
    run = place(dead)["run_id"]
    assert MlflowClient(store).get_run(run).info.status == "RUNNING"
    RunFolder(dead).update(owner={"pid": 2**22 + 1, "started": 1.0, "host": socket.gethostname()})
    alive = dead.with_name("next")
    shutil.copytree(dead, alive)
    for name in ("run.json", "record.json"):
        (alive / name).unlink()
    other = SweepRecord(alive, facts(4), tracking_uri=store)
    other.start()
    other.close("finished", deadline_s=60)
    assert MlflowClient(store).get_run(run).info.status == "KILLED"
    assert RunFolder(dead).read()["status"] == "died"


def test_every_run_says_what_charts_need() -> None:
    job = load_recipe("jobs/digits.py").job
    said = recorded_values(apply(job, ["optimizer.lr=0.001", "schedule=Rex(final=0.2)"]))
    assert (said["log10_lr"], said["schedule.family"], said["schedule.final"]) == ("-3", "Rex", "0.2")
    composed = recorded_values(apply(job, ["schedule=Piecewise(pieces=((0.5, Constant), (0.5, Linear)))"]))
    assert composed["schedule.family"] == "Piecewise"


def test_wherever_the_sender_stopped_the_rest_is_the_same() -> None:
    told = [(e, 10 * (i + 1)) for i, e in enumerate(entries(8, 1000.0, Path("runs")))]
    whole = [p for parcel in parcels(HERE, iter(told), Progress()) for p in parcel.points]
    for cut in range(0, len(told), 7):
        first = list(parcels(HERE, iter(told[:cut]), Progress()))
        reached = first[-1].progress if first else Progress()
        rest = list(parcels(HERE, iter(told), reached))
        assert [p for parcel in (*first, *rest) for p in parcel.points] == whole
    assert [p.step for p in whole if p.key == "trials/failed"] == list(range(1, 9))
    assert list(parcels(HERE, iter(told), Progress(offset=told[-1][1]))) == []


def test_what_nobody_tells_is_not_on_the_record() -> None:
    """Trials that fail before their first evaluation, and a price that nobody has given."""
    failed = [{"kind": "suggested", "time": 1.0, "trial": 0, "name": "a", "run": "a", "folder": "a", "fields": {}}]
    failed += [{"kind": "ended", "time": 2.0, "trial": 0, "status": "failed", "reason": "no"}]
    opened, *told = entries(4, 1000.0, Path("runs"))
    free = [{k: v for k, v in entry.items() if k != "dollars"} for entry in told]
    for rest, known in ((failed, set()), (free, {"worker_seconds", "seconds", "joules"})):
        numbered = [(e, i + 1) for i, e in enumerate([opened, *rest])]
        points = [p for parcel in parcels(HERE, iter(numbered), Progress()) for p in parcel.points]
        assert {p.key for p in points if p.key.startswith("cost/")} == {f"cost/{name}" for name in known}


def test_an_interrupted_trial_is_not_over() -> None:
    told = list(entries(4, 1000.0, Path("runs")))
    ended = next(i for i, e in enumerate(told) if e["kind"] == "ended")
    told[ended] = {**told[ended], "status": "interrupted", "reason": "by Ctrl-C"}
    numbered = [(e, i + 1) for i, e in enumerate(told)]
    points = [p for parcel in parcels(HERE, iter(numbered), Progress()) for p in parcel.points]
    assert max(p.step for p in points) == 3


@pytest.mark.parametrize(
    ("value", "than", "mode", "expected"),
    [
        *((1.0, None, "min", True), (1.0, 2.0, "min", True), (1.0, 2.0, "max", False), (3.0, 2.0, "max", True)),
        *((float("nan"), None, "min", False), (float("nan"), 2.0, "max", False)),
    ],
)
def test_better(value: float, than: float | None, mode: str, expected: bool) -> None:
    assert better(value, than, mode) is expected


def test_links_say_what_to_show(tmp_path: Path) -> None:
    link = children_link("http://h:1/", "7", "abc", metric="val/loss", mode="min")
    path, _, query = link.partition("?")
    said = {name: values[0] for name, values in parse_qs(query).items()}
    assert path == "http://h:1/#/experiments/7/runs"
    assert said["searchFilter"] == "tags.`mlflow.parentRunId` = 'abc'"
    assert (said["orderByKey"], said["orderByAsc"]) == ("metrics.`best_val_loss`", "true")
    assert said["compareRunsMode"] == "CHART"
    compared = compare_link("http://h:1", "7", ["a", "b"])
    assert unquote(compared).startswith('http://h:1/#/compare-runs?runs=["a","b"]&experiments=["7"]')
    folder = write_sweep(tmp_path, 4, began=1000.0)
    assert links(folder, "http://h:1") == {}, "nothing of it is in MLflow"
    assert where_recorded(folder) == [f"shoal ui --runs {tmp_path}"]
    RunFolder(folder).update(name="s", mlflow={"uri": "http://h:1", "experiment_id": "7", "run_id": "abc"})
    for row in read(folder / FILE).rows:
        RunFolder(Path(row.folder)).update(mlflow={"experiment_id": "7", "run_id": f"r{row.number}"})
    both = links(folder, "http://h:1")
    assert both["trials"] == (
        "http://h:1/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=abc&compareRunsMode=CHART"
    )
    assert '"r0"' in unquote(both["compared"])
    assert '"r2"' not in unquote(both["compared"]), "a failed trial has nothing to compare"
    assert where_recorded(folder) == list(both.values())
    assert newest_sweep(tmp_path) == folder
    assert newest_sweep(tmp_path / "elsewhere") is None


def test_the_view_shows_what_was_searched() -> None:
    said = json.loads(view(facts(4), "abc"))
    assert said["searchFilter"] == "tags.`mlflow.parentRunId` = 'abc'"
    assert (said["orderByKey"], said["orderByAsc"]) == ("metrics.`best_val_loss`", True)
    cards = {card["type"]: card for card in said["compareRunCharts"]}
    assert list(cards) == ["PARALLEL", "SCATTER", "CONTOUR", "LINE"]
    assert cards["PARALLEL"]["selectedParams"] == ["log10_lr", "batch.size", "schedule"], "those that all trials have"
    assert cards["PARALLEL"]["selectedMetrics"] == ["best_val_loss"]
    assert cards["CONTOUR"]["xaxis"]["key"] == "log10_lr"
    assert {card["metricSectionId"] for card in said["compareRunCharts"]} == {"Sweep"}
    one = replace(facts(4), space=({"name": "seed", "kind": "choice", "values": [1, 2]},))
    assert [card["type"] for card in json.loads(view(one, "abc"))["compareRunCharts"]].count("CONTOUR") == 0


def test_a_place_that_holds_no_record_is_refused_at_once(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, 4, began=1000.0, with_runs=False)
    with pytest.raises(ConfigError, match="is not supported"):
        SweepRecord(folder, facts(4), tracking_uri="./mlruns")


def test_a_run_of_no_sweep_is_as_before(tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    folder = RunFolder(tmp_path / "alone")
    folder.path.mkdir()
    folder.update(name="gpt", status="running")
    ledger = Ledger(folder.ledger)
    step = {"step": 1, "metrics": {"val/loss": 2.0}, "seconds": 0.1}
    ledger.append([{"kind": "evaluation", **step}, {"kind": "end", "status": "stopped", "reason": "by Ctrl-C"}])
    ledger.close()
    settings = RecordSettings(runs=tmp_path, experiment="gpt", run_name="alone", tracking_uri=store)
    assert RecordSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    recorder = Recorder(folder, settings)
    recorder.start()
    assert recorder.close(60) == 0
    run = MlflowClient(store).get_run(place(folder.path)["run_id"])
    assert "best_val_loss" not in run.data.metrics
    assert not {"mlflow.parentRunId", "error"} & set(run.data.tags)
