"""Where a run is recorded and what is said about it: one frozen value, made where the run was started."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from shoal.errors import ConfigError

MAX_DIGEST = 36
"""Characters that MLflow keeps of a data set's digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """The training data, as the runs table shows it."""

    name: str
    digest: str
    """Content digest; the first 36 characters are kept."""
    source: str
    """Path or URI."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOf:
    """What makes a run a trial: its sweep, and what that judges it by."""

    sweep: Path
    """The sweep's folder. What is recorded of it in MLflow becomes the parent of this run's record."""
    number: int
    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    experiment: str = ""
    """MLflow experiment of all trials, and of the sweep; default: the job's name."""

    @property
    def tags(self) -> dict[str, str]:
        return {SWEEP_TAG: self.sweep.name, TRIAL_TAG: str(self.number)}


SWEEP_TAG, TRIAL_TAG = "shoal.sweep", "shoal.trial"
"""Tags of a trial: the name of its sweep, its number in there."""


def best_key(metric: str) -> str:
    """Name in MLflow of the best value of `metric` so far. Without a slash, it stands on top of the UI's charts."""
    return f"best_{metric.replace('/', '_')}"


def better(value: float, than: float | None, mode: str) -> bool:
    """Whether `value` beats `than`; NaN never does, and any number beats None."""
    if math.isnan(value):
        return False
    return than is None or (value > than if mode == "max" else value < than)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordSettings:
    """What the recorder needs to know. Relative paths are resolved at once, against the current folder.

    Raises ConfigError for a tracking URI that cannot hold a record.
    """

    runs: Path
    """The folder of all runs, for the defaults below."""
    experiment: str
    run_name: str
    tracking_uri: str = ""
    """Default: `sqlite:///<runs>/mlflow.db`."""
    artifact_root: str | None = None
    """Where a new experiment keeps artifacts. Default: `<runs>/artifacts`; with a server, the server's choice."""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: DatasetEntry | None = None
    trial: TrialOf | None = None

    def __post_init__(self) -> None:
        runs = Path(self.runs).absolute()
        uri = absolute_uri(self.tracking_uri) if self.tracking_uri else f"sqlite:///{runs / 'mlflow.db'}"
        object.__setattr__(self, "runs", runs)
        object.__setattr__(self, "tracking_uri", uri)
        if self.artifact_root is None and not is_server(uri):
            object.__setattr__(self, "artifact_root", str(runs / "artifacts"))
        if not self.experiment.strip():
            raise ConfigError("the experiment has an empty name; give the job a name")

    def to_json(self) -> dict[str, Any]:
        trial = self.trial
        return {
            **_values(self),
            "runs": str(self.runs),
            "params": dict(self.params),
            "tags": dict(self.tags),
            "dataset": dataclasses.asdict(self.dataset) if self.dataset else None,
            "trial": {**_values(trial), "sweep": str(trial.sweep)} if trial else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RecordSettings:
        dataset, trial = value.get("dataset"), value.get("trial")
        parts = {
            "runs": Path(value["runs"]),
            "dataset": DatasetEntry(**dataset) if dataset else None,
            "trial": TrialOf(**{**trial, "sweep": Path(trial["sweep"])}) if trial else None,
        }
        return cls(**{**value, **parts})


def _values(value: Any) -> dict[str, Any]:
    # Not dataclasses.asdict: it copies mappings as what they are, and they need not be dictionaries.
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def database_path(uri: str) -> Path | None:
    """The file behind a `sqlite:///` URI; None for other stores."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def absolute_uri(uri: str) -> str:
    """`uri` with a relative SQLite path made absolute; ConfigError if MLflow could not record there."""
    path = database_path(uri)
    if path is not None:
        if not path.name:
            raise ConfigError(f"tracking URI {uri!r} names no file; use for example sqlite:///runs/mlflow.db")
        return f"sqlite:///{path.absolute()}"
    if is_server(uri):
        if not urlsplit(uri).hostname:
            raise ConfigError(f"tracking URI {uri!r} names no host; use for example http://127.0.0.1:5000")
        return uri.rstrip("/")
    if re.match(r"(postgresql|mysql|mssql)(\+\w+)?://|databricks", uri):
        return uri
    raise ConfigError(
        f"tracking URI {uri!r} is not supported; use sqlite:///<file>, http(s)://<host>, or a database URI that MLflow "
        f"knows. Plain folders are refused, because MLflow no longer keeps records in them"
    )
