"""Brings a ledger into MLflow, one call at a time. Blocking; the recorder runs it in a thread."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError, ShoalError
from shoal.locks import file_lock
from shoal.redaction import redact, redacted
from shoal.run_folder import RunFolder, write_json
from shoal.tracking.ledger import ends_a_line, scan, tail
from shoal.tracking.points import ERROR, REASON, Parcel, Progress, clean_key
from shoal.tracking.settings import MAX_DIGEST, RecordSettings
from shoal.tracking.store import experiment_id, open_client
from shoal.tracking.subject import Subject, TrainingRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_TAGS = 100
_MAX_TAG = 8000
_CREATION_WAIT_S = 60.0
RUN_TAG = "shoal.run_id"
"""Tag that finds a run by its folder's name."""
PARENT_TAG = "mlflow.parentRunId"
"""MLflow's own: its UI shows a run with this tag below the run that it names."""


class Sender:
    """The connection to MLflow of one run, or of another `subject`. Methods raise whatever MLflow raises; calling them
    again continues.

    `record.json` notes, after every call that worked, how far the ledger is in MLflow; the settings are in it too, so
    that a run can be sent later, by anybody.
    """

    def __init__(self, folder: RunFolder, settings: RecordSettings, subject: Subject | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.subject: Subject = subject or TrainingRun.of(settings)
        self.ledger = self.subject.ledger(folder)
        self._stack = ExitStack()
        self._client: MlflowClient | None = None
        self._run = ""
        self.progress = Progress()
        self._known_run = ""
        self._uploaded: set[str] = set()
        self._load()

    @property
    def connected(self) -> bool:
        return self._client is not None

    def connect(self, *, live: bool = False) -> None:
        """Open the store, and the run in it: the one on record, one of the same name, or a new one.

        `live` says that the run goes on, and is then shown as running unless its ledger has ended.
        """
        if not self._stack.enter_context(file_lock(self.folder.path / ".record.lock", 0.0)):
            self._stack.close()
            raise ConfigError(f"run {self.folder.run_id} is being sent to MLflow by another process; let it finish")
        try:
            # Another process may have sent more in the meantime; and who sends later needs the settings.
            self._load()
            self._save()
            client = open_client(self.settings)
            self._run, experiment = self._find_or_create(client)
            self._describe(client, experiment)
            if live and [e["kind"] for e in tail(self.ledger, 4096)][-1:] != ["end"]:
                self._set_running(client)
        except BaseException:
            self._stack.close()
            raise
        self._client, self._known_run = client, self._run
        place = {"uri": redact(self.settings.tracking_uri), "experiment_id": experiment, "run_id": self._run}
        self.folder.update(mlflow=place)
        self._save()

    def close(self) -> None:
        self._client = None
        self._stack.close()

    def send(self, *, before: float = math.inf, stop: Callable[[], bool] = lambda: False) -> None:
        """Send the ledger's entries that are older than `before` (whole Unix seconds), unless `stop()` comes true."""
        for parcel in self.subject.parcels(self.ledger, self.progress, before):
            self._deliver(parcel)
            self.progress = parcel.progress
            self._save()
            if stop():
                return

    def terminate(self, status: str, reason: str, time_ms: int) -> None:
        """End the MLflow run with a status that the ledger does not know of."""
        self.client.set_tag(self._run, REASON, redact(reason))
        self.client.set_terminated(self._run, status, end_time=time_ms)

    def unsent(self) -> int:
        """Steps, evaluations and changes of status that MLflow has not got yet."""
        return self.subject.unsent(self.ledger, self.progress)

    def keep_settings(self) -> None:
        """Write `record.json` before anything was sent, so that others know where this is recorded."""
        self._save()

    def upload(self, path: Path, *, once: bool = True) -> None:
        """Copy a file or a folder to the run's artifacts, under its own name and without secrets; nothing if it is not
        there."""
        if not path.exists() or (once and path.name in self._uploaded):
            return
        with redacted(path) as shown:
            if path.is_dir():
                self.client.log_artifacts(self._run, str(shown), artifact_path=path.name)
            else:
                inside = path.parent.relative_to(self.folder.path).as_posix()
                self.client.log_artifact(self._run, str(shown), artifact_path=None if inside == "." else inside)
        if once:
            self._uploaded.add(path.name)
            self._save()

    @property
    def client(self) -> MlflowClient:
        if self._client is None:
            raise ShoalError("the record is not connected to MLflow; call connect() first")
        return self._client

    def _deliver(self, parcel: Parcel) -> None:
        from mlflow.entities import Metric, RunTag

        tags = [RunTag(k, redact(v)[:_MAX_TAG]) for k, v in parcel.tags.items()]
        for some in _batches(parcel.points, MAX_METRICS):
            metrics = [Metric(p.key, p.value, p.time_ms, p.step) for p in some]
            self.client.log_batch(self._run, metrics=metrics, tags=tags)
            tags = []
        if tags:
            self.client.log_batch(self._run, tags=tags)
        if parcel.status == "RUNNING":
            self._set_running(self.client)
        elif parcel.status:
            self.client.set_terminated(self._run, parcel.status, end_time=parcel.time_ms)

    def _set_running(self, client: MlflowClient) -> None:
        client.update_run(self._run, status="RUNNING")
        tags = client.get_run(self._run).data.tags
        for name in (REASON, ERROR):
            if name in tags:
                client.delete_tag(self._run, name)

    def _find_or_create(self, client: MlflowClient) -> tuple[str, str]:
        """The MLflow run of this folder, and its experiment. Several processes may ask for it at the same time: those
        of a sweep and of its trials."""
        with file_lock(self.folder.path / ".mlflow.lock", _CREATION_WAIT_S) as got:
            if not got:
                raise ShoalError(f"another process keeps {self.folder.path / '.mlflow.lock'}; is it stuck?")
            return self._found(client) or self._created(client)

    def _found(self, client: MlflowClient) -> tuple[str, str] | None:
        from mlflow.exceptions import MlflowException

        if self._known_run:
            try:
                info = client.get_run(self._known_run).info
                return info.run_id, info.experiment_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        # Another one gets the whole ledger, from its beginning.
        self.progress, self._uploaded = Progress(), set()
        experiment = experiment_id(client, self.settings)
        # A crash between the creation of a run and the note of its id leaves a run that can be found by its tags. Two
        # sweeps of one name, in two places, have trials of the same names.
        query = " and ".join(f"tags.`{k}` = '{v}'" for k, v in self._identity(client).items())
        found = client.search_runs([experiment], filter_string=query, max_results=1)
        return (found[0].info.run_id, experiment) if found else None

    def _created(self, client: MlflowClient) -> tuple[str, str]:
        experiment = experiment_id(client, self.settings)
        began = next((round(e["time"] * 1000) for e, _ in scan(self.ledger)), None)
        run = client.create_run(
            experiment, start_time=began, tags=self._identity(client), run_name=self.settings.run_name
        )
        return run.info.run_id, experiment

    def _identity(self, client: MlflowClient) -> dict[str, str]:
        """The tags that a run is found by. Of a trial also the sweep's run, which is made if MLflow has not got it yet:
        whoever comes first makes it."""
        own = {RUN_TAG: self.settings.tags.get(RUN_TAG, self.folder.run_id)}
        if self.settings.trial is None:
            return own
        sweep = RunFolder(self.settings.trial.sweep)
        noted = read_record(sweep)
        if not noted or noted["uri"] != self.settings.tracking_uri:
            return own
        parent = Sender(sweep, RecordSettings.from_json(noted["settings"]))._find_or_create(client)[0]
        return {**own, PARENT_TAG: parent}

    def _describe(self, client: MlflowClient, experiment: str) -> None:
        """Parameters, tags and the data set. Saying the same twice is fine; a changed parameter becomes a tag."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        known = client.get_run(self._run).data.params
        given = {clean_key(k): redact(str(v))[:6000] for k, v in self.settings.params.items()}
        changed = {f"resumed.{k}": f"{known[k]} -> {v}" for k, v in given.items() if k in known and known[k] != v}
        new = [Param(k, v) for k, v in given.items() if k not in known]
        note = self.subject.note(self.folder, experiment, self._run)
        tags = {**self.settings.tags, **changed, "mlflow.note.content": note}
        for name, value in self.subject.experiment_tags(self.folder, self._run).items():
            client.set_experiment_tag(experiment, name, value)
        for params in _batches(new, MAX_PARAMS):
            client.log_batch(self._run, params=params)
        for some in _batches([RunTag(clean_key(k), redact(str(v))[:_MAX_TAG]) for k, v in tags.items()], MAX_TAGS):
            client.log_batch(self._run, tags=some)
        if (data := self.settings.dataset) is not None:
            source = json.dumps({"uri": redact(data.source)})
            dataset = Dataset(
                name=redact(data.name), digest=data.digest[:MAX_DIGEST], source_type="local", source=source
            )
            context = [InputTag("mlflow.data.context", "training")]
            client.log_inputs(self._run, datasets=[DatasetInput(dataset, context)])

    def _load(self) -> None:
        """Take up what `record.json` notes, if it is about the same store."""
        noted = read_record(self.folder)
        if noted.get("uri") != self.settings.tracking_uri:
            return
        self.progress = Progress(**noted["progress"])
        if not ends_a_line(self.ledger, self.progress.offset):
            # A power loss took the ledger's end. What was written there since is read; steps are still sent once.
            self.progress = dataclasses.replace(self.progress, offset=0)
        self._known_run, self._uploaded = noted["mlflow_run"], set(noted["uploaded"])

    def _save(self) -> None:
        value = {
            "uri": self.settings.tracking_uri,
            "mlflow_run": self._known_run,
            "progress": dataclasses.asdict(self.progress),
            "uploaded": sorted(self._uploaded),
            "settings": self.settings.to_json(),
        }
        # The URI may hold a password.
        write_json(self.folder.record, value, mode=0o600)


def read_record(folder: RunFolder) -> dict[str, Any]:
    """`record.json`, empty if this run was never recorded or the file is damaged: then all is sent again, once."""
    try:
        return json.loads(folder.record.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _batches(values: list, size: int) -> list[list]:
    it = iter(values)
    return list(iter(lambda: list(itertools.islice(it, size)), []))
