"""Sweep recipes, loaded by path; and the best job of a sweep, written as a recipe that `shoal train` runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shoal.errors import ConfigError
from shoal.job import Job, by_value
from shoal.job.overrides import apply
from shoal.job.recipe import Recipe, load_recipe, load_value, shown
from shoal.tuning.space import overrides
from shoal.tuning.spec import Sweep
from shoal.tuning.trials import SweepState, TrialRow

BEST = "best.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRecipe:
    """A sweep recipe that has been loaded, with its base job."""

    sweep: Sweep
    """Its `job` is the job itself, with what `--set job...` changed."""
    path: Path
    name: str
    """The name in the file that gave the sweep."""
    sources: tuple[Path, ...]
    """The files of the recipe's own modules."""
    base: Recipe | None
    """Where the base job comes from; None: the sweep recipe makes it."""
    asked: tuple[str, ...]
    """What is changed in the base job: the sweep's overrides, and what `--set job...` says, without the `job.`."""

    @property
    def job(self) -> Job:
        assert isinstance(self.sweep.job, Job)
        return self.sweep.job


def load_sweep(reference: str | Path, asked: Sequence[str] = ()) -> SweepRecipe:
    """Run the sweep recipe `tuning/lr.py` (`tuning/lr.py:other` for another name than `sweep`), load its base job, and
    set what is `asked`: fields of the sweep (`trials=10`) and of the job (`job.budget.steps=100`).

    Raises ConfigError as `load_recipe` does, and for what the sweep refuses.
    """
    sweep, path, name, sources = load_value(reference, "sweep", Sweep)
    base = None if isinstance(sweep.job, Job) else load_recipe(_base(str(sweep.job), path))
    job = sweep.job if base is None else base.job
    assert isinstance(job, Job)
    sweep = apply(replace(sweep, job=apply(job, sweep.overrides)), asked)
    of_job = [a.strip().removeprefix("job.") for a in asked if a.strip().startswith("job.")]
    return SweepRecipe(sweep=sweep, path=path, name=name, sources=sources, base=base, asked=(*sweep.overrides, *of_job))


def _base(reference: str, path: Path) -> str:
    beside = path.parent / reference.partition(":")[0]
    return str(path.parent / reference) if beside.is_file() else reference


def write_best(recipe: SweepRecipe, state: SweepState, row: TrialRow) -> Path:
    """Write `best.py` into the sweep's folder, beside copies of the files that it needs; returns its path."""
    path = Path(state.folder) / BEST
    listed = "".join(f"        {one!r},\n" for one in (*recipe.asked, *overrides(row.fields)))
    path.write_text(
        f'"""The best of {len(state.rows)} trials of the sweep {state.name}: {state.facts.metric} {row.best:.6g} in '
        f"trial {row.number} ({row.run_id}).\n\nshoal train {shown(path)}\n"
        f'"""\n\n{_kept_base(recipe, path.parent)}\njob = apply(\n    base,\n    [\n{listed}    ],\n)\n'
    )
    return path


def _kept_base(recipe: SweepRecipe, folder: Path) -> str:
    """Lines that get `base` and `apply`, with the files that they need put into `folder`."""
    of = recipe.path if recipe.base is None else recipe.base.path
    name = recipe.name if recipe.base is None else recipe.base.name
    sources = recipe.sources if recipe.base is None else recipe.base.sources
    apply_ = "from shoal.job.overrides import apply\n"
    if not sources:  # a job that was saved without its recipe
        (folder / "base.pkl").write_bytes(by_value.dumps(recipe.job))
        imports = f"from pathlib import Path\n\n{apply_}from shoal.job.recipe import load_recipe\n"
        return f'{imports}\nbase = load_recipe(Path(__file__).with_name("base.pkl")).job'
    for source in sources:
        target = folder / source.relative_to(of.parent)
        if target.name == BEST:
            raise ConfigError(f"{source} has the name of the file that the sweep writes; rename it")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    # By name, because a recipe's need not be a word of Python.
    imports = f"from importlib import import_module\n\n{apply_}"
    made = f'made = getattr(import_module("{of.stem}"), "{name}")\nmade = made() if callable(made) else made'
    return f"{imports}\n{made}\nbase = made{'.job' if recipe.base is None else ''}"
