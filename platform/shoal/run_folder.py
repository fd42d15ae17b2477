"""The folder of one run: everything that the run leaves on this machine, under one roof.

runs/
  mlflow.db                 the record of all runs (default tracking store)
  artifacts/                MLflow's artifacts
  data/                     built-in corpora and prepared data
  gpt-20261120-083112-a1b2/ one run
    run.json                identity, status, command, MLflow ids
    job.json                the job's resolved values, and how to run it again
    recipe/                 the recipe's source files
    ledger.jsonl            append-only record of commits, evaluations, checkpoints, views
    record.json             how far the ledger has been sent to MLflow
    checkpoints/            durable checkpoints (unless the job names another place)
    model/                  the exported model
    report.html             curves and numbers
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.locks import file_lock


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run. Creating the value touches nothing on disk."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def root(self) -> Path:
        """The folder that holds all runs."""
        return self.path.parent

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def read(self) -> dict[str, Any]:
        """`run.json`; ConfigError if this is no run folder."""
        try:
            return json.loads((self.path / "run.json").read_text())
        except FileNotFoundError:
            known = sorted(p.parent.name for p in self.root.glob("*/run.json")) if self.root.is_dir() else []
            hint = f"; runs here: {', '.join(known[-5:])}" if known else "; there are no runs here yet"
            raise ConfigError(f"no run at {self.path}{hint}") from None

    def update(self, **values: Any) -> dict[str, Any]:
        """Merge `values` into `run.json`, atomically: several threads and processes may do so at the same time."""
        path = self.path / "run.json"
        with file_lock(self.path / ".run.json.lock", wait_s=10.0):
            merged = {**(json.loads(path.read_text()) if path.exists() else {}), **values}
            write_json(path, merged)
        return merged


def check_name(name: str, what: str) -> str:
    """`name`, if it is one word that names a folder inside another; else ConfigError, which calls it `what`."""
    if not name or len(name) > 200 or name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name):
        raise ConfigError(
            f"{what} {name!r} must be a word that names a folder inside another one: no slashes, no dot in front, at "
            f"most 200 characters; where that folder lies is said by --runs"
        )
    return name


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write `value` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "w") as file:
        file.write(json.dumps(value, indent=1, sort_keys=False, default=str) + "\n")
    os.replace(temporary, path)
