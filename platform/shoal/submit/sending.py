"""What `shoal submit` sends to a cluster: the command, the folder, the environment. Checked before anything leaves this
machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shoal.errors import ConfigError
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe, shown
from shoal.launch.cluster import shipping
from shoal.launch.prepare import fresh_name
from shoal.tuning.recipe import load_sweep

RESULTS = ("runs", "mlruns")
STAYS_HERE = (
    *(f"/{name}/" for name in RESULTS),
    *("/mlflow.db", "/build/", "/dist/", "node_modules/", ".git", ".venv*/", "venv/", "__pycache__/", "*.egg-info/"),
    *(".*_cache/", ".hypothesis/", ".ipynb_checkpoints/"),
    *(".env", ".env.*", ".envrc", ".netrc", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".aws/", ".ssh/", ".kube/"),
)
"""Patterns, as in .gitignore, of what no job needs: what runs left, what a tool makes again, and files of secrets."""

STOP_S = 60
"""How long Ray lets a job that is stopped write its checkpoint. By default it is killed after 3 seconds."""

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|AUTH|API_?KEY|ACCESS_?KEY", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What `shoal submit` was asked for."""

    recipe: str | None = None
    sweep: bool = False
    overrides: tuple[str, ...] = ()
    resume: str | None = None
    new_data: bool = False
    name: str | None = None
    runs: str | None = None
    """Folder of the runs, at the cluster."""
    tracking_uri: str | None = None
    folder: Path = Path(".")
    exclude: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    """`NAME=VALUE`, or `NAME` for what it is here."""
    as_json: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One job of Ray's, ready to be sent."""

    name: str
    """Its id at the cluster; also the name of the run or sweep that it begins."""
    command: tuple[str, ...]
    folder: Path
    exclude: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """As Ray takes it: the folder, Shoal's own code, and the variables that were asked for in so many words.
        Nothing else of this process's environment goes along."""
        return {
            "working_dir": str(self.folder),
            "excludes": [*STAYS_HERE, *self.exclude],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **self.environment},
            **shipping(),
        }


@dataclass(frozen=True, slots=True)
class _Found:
    """A recipe as it is on this machine."""

    files: tuple[Path, ...]
    """Those that the cluster needs, the recipe itself first."""
    title: str
    suffix: str = ""
    """`:NAME`, where the recipe was asked for another value than its first."""


def make_submission(wish: Wish, here: Mapping[str, str]) -> Submission:
    """Check `wish` as far as this machine can, and say what to send. `here`: the environment of this process.

    Raises ConfigError: for a recipe or a value that `shoal train` would refuse, for a recipe outside of the folder, for
    a secret in the command or in the environment.
    """
    folder = wish.folder.resolve()
    if not folder.is_dir():
        raise ConfigError(f"--working-dir {wish.folder} is no folder; name the one that holds the recipe")
    _without_passwords(wish)
    environment = dict(_variable(one, here) for one in wish.environment)
    if wish.recipe is not None:
        name, verb = _from_recipe(wish, wish.recipe, folder)
    elif wish.resume is not None and not wish.sweep:
        name = fresh_name(wish.resume)
        verb = ["resume", wish.resume, *(["--name", wish.name] if wish.name else [])]
    else:
        raise ConfigError(f"name the recipe of the {'sweep' if wish.sweep else 'job'}, as in: shoal submit jobs/gpt.py")
    options = [word for one in wish.overrides for word in ("--set", one)]
    for flag, value in (("--runs", wish.runs), ("--tracking-uri", wish.tracking_uri)):
        options += [flag, value] if value is not None else []
    options += ["--new-data"] if wish.new_data else []
    options += ["--json"] if wish.as_json else []
    return Submission(
        name=name,
        # By module: the code that is sent along runs, whichever is installed there.
        command=("python", "-m", "shoal", *verb, *options),
        folder=folder,
        exclude=wish.exclude,
        environment=environment,
    )


def _from_recipe(wish: Wish, recipe: str, folder: Path) -> tuple[str, list[str]]:
    """(name of the job at the cluster, the command without its options)."""
    if wish.sweep and wish.new_data:
        raise ConfigError("--new-data is for one run; a sweep begins its trials anew, or goes on with --resume NAME")
    found = _find(wish, recipe)
    for path in found.files:
        _is_sent(path, folder)
    name = wish.name or fresh_name(wish.resume or found.title)
    verb = ["sweep" if wish.sweep else "train", f"{found.files[0].relative_to(folder).as_posix()}{found.suffix}"]
    if wish.resume is None:
        return name, [*verb, "--name", name]
    return name, [*verb, "--resume", wish.resume, *(["--name", wish.name] if wish.name else [])]


def _find(wish: Wish, recipe: str) -> _Found:
    """Load the recipe, with its values replaced, as the cluster will."""
    try:
        if wish.sweep:
            sweep = load_sweep(recipe, wish.overrides)
            base = () if sweep.base is None else (sweep.base.path,)
            return _Found((sweep.path, *base), sweep.path.stem, _suffix(sweep.name, "sweep"))
        loaded = load_recipe(recipe)
        apply(loaded.job, wish.overrides)
        return _Found((loaded.path,), loaded.job.name, _suffix(loaded.name, "job"))
    except ConfigError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            # The cluster may have what this machine lacks; if it lacks it as well, the job's log says so.
            path, _, name = recipe.rpartition(":") if not recipe.endswith(".py") else (recipe, "", "")
            return _Found((Path(path).resolve(),), Path(path).stem, _suffix(name, ""))
        if not wish.sweep and _defines_a_sweep(recipe):
            raise ConfigError(f"{recipe} defines a sweep, not a job; submit it with --sweep") from None
        raise


def _suffix(name: str, default: str) -> str:
    return "" if name == default else f":{name}"


def _defines_a_sweep(recipe: str) -> bool:
    try:
        load_sweep(recipe)
    except ConfigError:
        return False
    return True


def _is_sent(path: Path, folder: Path) -> None:
    if not path.is_relative_to(folder):
        raise ConfigError(
            f"{shown(path)} lies outside of {folder}, which is what goes to the cluster; name a folder that holds it "
            f"with --working-dir"
        )
    if (top := path.relative_to(folder).parts[0]) in RESULTS:
        raise ConfigError(
            f"{shown(path)} lies in {top}/, which stays here, because it holds what runs left; name its own folder: "
            f"--working-dir {shown(path.parent)}"
        )


def _without_passwords(wish: Wish) -> None:
    """Refuse addresses with a password in them."""
    said = [("--tracking-uri", wish.tracking_uri or ""), ("--runs", wish.runs or "")]
    for flag, value in (*said, *(("--set", one.partition("=")[2]) for one in wish.overrides)):
        if "://" in value and urlsplit(value).password:
            raise ConfigError(
                f"{flag} has a password in it, which everyone who can look at the cluster's jobs would see; leave it "
                f"out and set it on the cluster's nodes (for MLflow: MLFLOW_TRACKING_USERNAME and "
                f"MLFLOW_TRACKING_PASSWORD)"
            )


def _variable(asked: str, here: Mapping[str, str]) -> tuple[str, str]:
    """`NAME=VALUE`, or `NAME` as it is here; never one that looks like a secret."""
    name, given, value = asked.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigError(f"--env {name!r} is no name of a variable; write --env NAME=VALUE, or --env NAME")
    if _SECRET.search(name) or ("://" in value and urlsplit(value).password):
        raise ConfigError(
            f"--env {name} looks like a secret, and Ray shows a job's environment to everyone who can look at its "
            f"jobs; set it on the cluster's nodes instead (a role of the machines, a Kubernetes Secret, or the "
            f"environment in which `ray start` runs)"
        )
    if not given and name not in here:
        raise ConfigError(f"--env {name}: there is no such variable here; write --env {name}=VALUE")
    return name, value if given else here[name]
