"""MLflow's store, opened so that it is safe to open: quietly, once at a time, with places that mean the same anywhere.

Everything here imports MLflow inside functions: that takes seconds, and only the record's own thread should pay.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.locks import file_lock
from shoal.tracking.settings import RecordSettings, database_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FIRST_USE_WAIT_S = 120.0
"""Making the tables of a new database takes seconds, on a busy machine tens of them."""

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # One attempt of ten seconds: the recorder has its own back-off, and must notice when it is told to stop.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def open_client(settings: RecordSettings) -> MlflowClient:
    """A client of the store that `settings` name; makes a SQLite database's folder, file and tables where needed.

    MLflow's first use of a new SQLite file by several processes at once fails, so that all of Shoal's go through a
    lock file. The database is put into write-ahead mode, in which readers such as the UI never block the writer.
    Raises what MLflow raises; ShoalError if another process keeps the lock.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import_quietly()
    from mlflow import MlflowClient

    path = database_path(settings.tracking_uri)
    with file_lock(lock_path(path), _FIRST_USE_WAIT_S) if path else nullcontext(True) as got:
        if not got:
            raise ShoalError(f"another process has been preparing {path} for {_FIRST_USE_WAIT_S:.0f} s; is it stuck?")
        if path:
            _write_ahead(path)
        client = MlflowClient(settings.tracking_uri, registry_uri=settings.tracking_uri)
        client.search_experiments(max_results=1)
    return client


def lock_path(database: Path) -> Path:
    return database.with_name(f".{database.name}.lock")


def experiment_id(client: MlflowClient, settings: RecordSettings) -> str:
    """The experiment of that name, made if there is none, restored if it was deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(settings.experiment)
    if found is None:
        try:
            made = client.create_experiment(settings.experiment, artifact_location=_location(settings))
            # Opens the experiment as model training; MLflow's UI takes unmarked ones for GenAI.
            client.set_experiment_tag(made, "mlflow.experimentKind", "custom_model_development")
            return made
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Another run made it in between.
        found = client.get_experiment_by_name(settings.experiment)
        assert found is not None, "an experiment that exists has a name"
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _location(settings: RecordSettings) -> str | None:
    root = settings.artifact_root
    return None if root is None else f"{root.rstrip('/')}/{settings.experiment.replace('/', '_')}"


def _write_ahead(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=20)
    try:
        connection.execute("pragma journal_mode=wal")
    finally:
        connection.close()


def import_quietly() -> None:
    """Import what a client needs, which takes seconds, and keep MLflow's and its database's progress lines out of the
    training output."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
