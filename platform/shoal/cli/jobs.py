"""The job that a command's argument names: a recipe's, or a run's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.job import Job
    from shoal.run_folder import RunFolder


def find_job(name: str, overrides: Sequence[str], root: Path) -> tuple[Job, RunFolder | None]:
    """The job of the recipe or of the run `name` (its id or folder), and the run's folder; None: a recipe. Raises
    ConfigError if there is neither."""
    from shoal.job.overrides import apply
    from shoal.job.recipe import load_recipe
    from shoal.job.store import load_job
    from shoal.launch.prepare import find_run

    if not _is_run(name, root):
        return apply(load_recipe(name).job, overrides), None
    folder = find_run(root, name)
    return load_job(folder, overrides), folder


def _is_run(name: str, root: Path) -> bool:
    """A folder, or a name that is no recipe's: those are files that end in .py, with or without `:NAME`."""
    return Path(name).is_dir() or (root / name).is_dir() or ".py" not in Path(name).name
