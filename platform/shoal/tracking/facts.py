"""What is worth knowing about a run besides its numbers: where its code came from, and with which versions it ran."""

from __future__ import annotations

import getpass
import platform
import socket
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

VERSIONS = ("shoal", "torch", "ray", "deepspeed", "mlflow", "transformers", "pyarrow")
_MAX_TAG = 8000


def environment_tags(folder: Path, *, command: str, engine: str, data_digest: str | None = None) -> dict[str, str]:
    """Tags for a run that is started in `folder`: user, command, git commit, versions, engine, data digest.

    Versions come from the packages' metadata; nothing is imported.
    """
    tags = {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": command,
        "mlflow.user": _user(),
        "shoal.engine": engine,
        "shoal.host": socket.gethostname(),
        "version.python": platform.python_version(),
        **{f"version.{name}": version for name, version in versions().items()},
        **git_tags(folder),
    }
    if data_digest:
        tags["shoal.data_digest"] = data_digest
    return {k: v[:_MAX_TAG] for k, v in tags.items()}


def versions(names: Sequence[str] = VERSIONS) -> dict[str, str]:
    """Installed versions of those of `names` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_tags(folder: Path) -> dict[str, str]:
    """Commit, branch and whether the tree was dirty, if `folder` is in a git repository and git is installed."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    tags = {"mlflow.source.git.commit": commit}
    if branch := _git(folder, "rev-parse", "--abbrev-ref", "HEAD"):
        tags["mlflow.source.git.branch"] = branch
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if changes is not None:
        tags["mlflow.source.git.dirty"] = "true" if changes else "false"
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's numeric user without an entry in the password file.
        return "unknown"
