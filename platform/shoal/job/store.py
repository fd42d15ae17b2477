"""The job in the run folder: readable by people, and enough to run it again."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.job import by_value
from shoal.job.fields import flatten
from shoal.job.overrides import apply
from shoal.job.recipe import Recipe, load_recipe, shown
from shoal.job.spec import Job
from shoal.run_folder import RunFolder, write_json

FORMAT = 1
PICKLE = "job.pkl"

_DECIDING = {
    *("task", "schedule", "seed", "engine.precision", "batch.size", "batch.virtual_shards"),
    *("batch.lr_rule", "batch.lr_base", "batch.growth"),
    *("data.train", "data.block", "data.shuffle", "data.window", "data.augment"),
    *("data.sources", "data.temperature", "data.replacement", "data.transforms", "data.columns"),
}
_DECIDING_GROUPS = (
    *("task.", "optimizer.", "schedule.", "budget.", "batch.growth."),
    *("data.curriculum.", "data.length_warmup.", "data.selection."),
)
_UNUSED = {
    *((name, "") for name in ("data.augment", "data.sources", "data.transforms", "data.columns")),
    ("data.replacement", "false"),
    ("batch.lr_rule", "auto"),
}
"""Values that count no more than None does."""
_NONE_COUNTS = {"batch.lr_rule"}
"""Where `none` is a value of its own."""


def job_digest(job: Job) -> str:
    """SHA-256 of the values that decide the result: what is trained on what, in which order, how far.

    Not of who computes it, how it is watched and what is kept: workers, engine (but for its precision), evaluation,
    checkpoints, name. The task and transforms count with their names and fields, not with their code. What is None does
    not count, so that an option that comes later leaves the digests of jobs that do not use it alone.
    """
    deciding = {name: text for name, text in flatten(job).items() if decides(name, text)}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def decides(name: str, text: str) -> bool:
    """Whether a job's value `text` of `name` counts in its digest."""
    if (text == "none" and name not in _NONE_COUNTS) or (name, text) in _UNUSED:
        return False
    return name in _DECIDING or name.startswith(_DECIDING_GROUPS)


def save_job(folder: RunFolder, job: Job, recipe: Recipe | None, asked: Sequence[str] = ()) -> dict[str, Any]:
    """Write `job.json` and what is needed to run the job again; returns what `job.json` says.

    The recipe's files are copied to `recipe/`, so that `shoal train <run>/recipe/gpt.py --set ...` runs the job again,
    with whatever differs from the recipe as overrides. Without a recipe the one that the folder already has is kept (a
    run that goes on). A job that no recipe and overrides make (it was made by a program) is kept as `job.pkl`, with
    the classes that are not importable. `asked` are the overrides as they were typed, for people to read.
    """
    source, base = _keep_recipe(folder, recipe)
    overrides = None if base is None else _overrides_between(base, job)
    if overrides is None:
        _write_atomically(folder.path / PICKLE, by_value.dumps(job))
        source, overrides = PICKLE, []
    sets = [word for override in overrides for word in ("--set", override)]
    said = {
        "format": FORMAT,
        "name": job.name,
        "digest": job_digest(job),
        "run_again": shlex.join(["shoal", "train", shown(folder.path / source), *sets]),
        "source": source,
        "overrides": overrides,
        "made_from": str(recipe.path) if recipe is not None else None,
        "asked": list(asked),
        "values": flatten(job),
    }
    write_json(folder.job, said)
    return said


def load_job(folder: RunFolder, extra_overrides: Sequence[str] = ()) -> Job:
    """The job of a run with the values that it had then, whatever the defaults or the recipe's surroundings are now.

    `extra_overrides` are applied on top. Raises ConfigError if the folder has no job, or if a recorded value cannot
    be restored.
    """
    said = _read(folder)
    job = apply(load_recipe(folder.path / said["source"]).job, said["overrides"])
    then = said["values"]
    try:
        job = apply(job, [f"{name}={then[name]}" for name in _changed(flatten(job), then)])
    except ConfigError as error:
        raise ConfigError(
            f"the job of {folder.path} cannot be restored as it was: {error}. Use the version of Shoal and of the task "
            f"that made it, or start a new run with: {said['run_again']}"
        ) from error
    return apply(job, extra_overrides)


def _read(folder: RunFolder) -> dict[str, Any]:
    try:
        said = json.loads(folder.job.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no job in {folder.path}: {folder.job.name} is missing; look at the path") from None
    except ValueError as error:
        raise ConfigError(f"{folder.job} is damaged ({error}); start a new run") from None
    if said.get("format") != FORMAT:
        raise ConfigError(
            f"{folder.job} has format {said.get('format')!r}, this Shoal reads {FORMAT}; use the version that wrote it"
        )
    return said


def _keep_recipe(folder: RunFolder, recipe: Recipe | None) -> tuple[str, Job | None]:
    """(what `load_recipe` takes, relative to the run folder; its job), with the files in the run folder."""
    if recipe is not None and recipe.sources:
        _copy_sources(recipe, folder.recipe)
        return f"{folder.recipe.name}/{recipe.reference}", recipe.job
    if recipe is None and folder.job.exists():
        source = str(_read(folder)["source"])
        return source, None if source == PICKLE else load_recipe(folder.path / source).job
    return PICKLE, None


def _copy_sources(recipe: Recipe, to: Path) -> None:
    if recipe.folder == to.resolve():
        return  # the run is run again from its own copy
    if to.exists():
        shutil.rmtree(to)
    for source in recipe.sources:
        target = to / source.relative_to(recipe.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _overrides_between(base: Job, job: Job) -> list[str] | None:
    """Overrides that make `job` of `base`, or None if there are none: another task, or values that are no text."""
    before, after = flatten(base), flatten(job)
    # One kind of budget replaces the others, so that only the one that counts needs to be said.
    overrides = [
        f"{name}={after[name]}"
        for name in _changed(before, after)
        if not (name.startswith("budget.") and after[name] == "none")
    ]
    try:
        return overrides if flatten(apply(base, overrides)) == after else None
    except ConfigError:
        return None


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names in `after` whose text is another one, and all values of a group that is of another kind now."""
    names = [name for name, text in after.items() if before.get(name) != text]
    return [name for name in after if any(name == n or name.startswith(f"{n}.") for n in names)]


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
