"""Recipes: Python files that define a job, loaded by path."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from shoal.errors import ConfigError, ShoalError
from shoal.job import by_value
from shoal.job.spec import Job

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A recipe that has been loaded."""

    path: Path
    name: str
    """The name in the file that gave the job."""
    job: Job
    modules: tuple[str, ...]
    """The recipe's own modules (itself, and what it imported from its folder); their classes are pickled by value."""
    sources: tuple[Path, ...]
    """The files of these modules."""

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def reference(self) -> str:
        """What `load_recipe` takes, relative to the recipe's folder: `gpt.py`, or `gpt.py:small`."""
        return self.path.name if self.name == "job" else f"{self.path.name}:{self.name}"


def load_recipe(reference: str | Path) -> Recipe:
    """Run the recipe at `jobs/gpt.py`, or `jobs/gpt.py:small` for another name than `job`, and take its job.

    The name must stand for a Job or for a function without arguments that returns one. Modules beside the recipe can
    be imported as if it were run as a script; import them at its top, so that they travel to the workers with it. A
    saved `job.pkl` is accepted in the place of a recipe. Raises ConfigError for a missing file, an error in the
    recipe (file, line, message), or no such job in it.
    """
    path, name = _locate(str(reference), "job")
    if path.suffix == ".pkl":
        return Recipe(path=path, name="job", job=_unpickle(path), modules=(), sources=())
    job, own = _load(path, name, Job)
    return Recipe(path=path, name=name, job=job, modules=tuple(own), sources=tuple({p for p in own.values() if p}))


def load_value(reference: str | Path, name: str, kind: type[T]) -> tuple[T, Path, str, tuple[Path, ...]]:
    """As `load_recipe`, for recipes of another kind: (the value of `name`, or of the name in `reference`; the file; the
    value's name; the files of the recipe's own modules)."""
    path, name = _locate(str(reference), name)
    value, own = _load(path, name, kind)
    return value, path, name, tuple({p for p in own.values() if p})


def _load(path: Path, name: str, kind: type[T]) -> tuple[T, dict[str, Path | None]]:
    with _importable(path.parent):
        module = _run(path)
        value = _take(module, path, name, kind)
    own = {module.__name__: path} | _modules_of(path.parent)
    by_value.register(own)
    return value, own


def shown(path: str | Path) -> str:
    """`path` relative to the working folder where it lies below it."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _locate(reference: str, default: str) -> tuple[Path, str]:
    head, _, tail = reference.rpartition(":")
    if head and tail.isidentifier():
        path, name = Path(head), tail
    else:
        path, name = Path(reference), default
    path = path.expanduser()
    if path.is_file() and path.suffix in (".py", ".pkl"):
        return path.resolve(), name
    if path.is_file():
        raise ConfigError(f"{path} is no Python file; a recipe is a .py file that defines `{default}`")
    near = _nearest_files(path)
    raise ConfigError(f"there is no recipe {path}{near or f'; a recipe is a .py file that defines `{default}`'}")


def _nearest_files(path: Path) -> str:
    folders = [path, path.parent, Path("jobs")]
    found = sorted({f for folder in folders if folder.is_dir() for f in folder.glob("*.py") if f.name != "__init__.py"})
    if not found:
        return ""
    close = get_close_matches(path.stem, [f.stem for f in found], n=1, cutoff=0.5)
    meant = [f"did you mean {f}?" for f in found if f.stem in close][:1]
    return f"; {' '.join([*meant, 'Recipes here:'])} {', '.join(map(str, found[:12]))}"


def _unpickle(path: Path) -> Job:
    try:
        job = by_value.loads(path.read_bytes())
    except Exception as error:
        raise ConfigError(
            f"the job in {path} cannot be loaded: {type(error).__name__}: {error}. It needs the modules it was made "
            f"with: run from the same folder, with the same packages installed"
        ) from error
    if not isinstance(job, Job):
        raise ConfigError(f"{path} holds a {type(job).__name__}, not a job")
    return job


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Imports see the recipe's folder first, as if it were run as a script, and leave no compiled files in it.

    What earlier recipes imported from their folders is forgotten before: another folder may hold another `helper.py`,
    and this one may have been edited since.
    """
    for name in _loaded_helpers:
        sys.modules.pop(name, None)
    _loaded_helpers.clear()
    importlib.invalidate_caches()
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    try:
        yield
    finally:
        _loaded_helpers.update(name for name in _modules_of(folder) if name not in before)
        sys.dont_write_bytecode = writes_bytecode
        with contextlib.suppress(ValueError):  # the recipe may have changed the path, too
            sys.path.remove(str(folder))


_loaded_helpers: set[str] = set()
"""Names of the modules that the last recipe imported from its folder."""


def _modules_of(folder: Path) -> dict[str, Path | None]:
    """Imported modules that lie in `folder` under their own names, each with its file (None: a folder of modules).

    Packages that merely are installed somewhere below it (a virtual environment, a source root) are not among them.
    """
    found: dict[str, Path | None] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("shoal", "__main__") or not isinstance(module, ModuleType):
            continue
        place = folder.joinpath(*name.split("."))
        file = getattr(module, "__file__", None)
        if file is None:
            paths = [str(p) for p in getattr(module, "__path__", ())]
            if str(place) in paths:
                found[name] = None
        elif Path(file) in (place.with_suffix(".py"), place / "__init__.py"):
            found[name] = Path(file)
    return found


def _run(path: Path) -> ModuleType:
    name = f"recipe_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"{path} ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    linecache.checkcache(str(path))
    with _blamed(path):
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module


def _take(module: ModuleType, path: Path, name: str, kind: type[T]) -> T:
    of, word = kind.__name__, kind.__name__.lower()
    known = [key for key, value in vars(module).items() if isinstance(value, kind)]
    if not hasattr(module, name):
        hint = f"; it defines {', '.join(known)}: use {path.name}:{known[0]}" if known else ""
        raise ConfigError(f"{path} defines no `{name}`{hint or f'; write `{word} = shoal.{of}(...)`'}")
    value: Any = getattr(module, name)
    if isinstance(value, kind):
        return value
    if callable(value) and not isinstance(value, type):
        value = _call(value, path, name)
    if not isinstance(value, kind):
        hint = f"; {of}s in this file: {', '.join(known)}" if known else ""
        raise ConfigError(f"`{name}` in {shown(path)} is a {type(value).__name__}, not a shoal.{of}{hint}")
    return value


def _call(function: Callable[[], Any], path: Path, name: str) -> Any:
    with _blamed(path):
        try:
            return function()
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # the call itself failed
                raise ConfigError(f"`{name}` in {shown(path)} must be callable without arguments: {error}") from error
            raise


@contextlib.contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Turn what the user's code raises into a ConfigError that names file and line of the recipe's own code."""
    try:
        yield
    except SyntaxError as error:
        where = f"{shown(error.filename)}:{error.lineno}" if error.filename else shown(path)
        line = f"\n    {error.text.strip()}" if error.text else ""
        raise ConfigError(f"{where}: {error.msg}{line}") from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and it is what the user must read
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).is_relative_to(path.parent)]
        said = str(error) if isinstance(error, ShoalError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            said += f"; install it, or put it beside {path.name}"
        if not own:
            raise ConfigError(f"{shown(path)}: {said}") from error
        raise ConfigError(f"{shown(own[-1].filename)}:{own[-1].lineno}: {said}\n    {own[-1].line}") from error
