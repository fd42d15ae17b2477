"""What must be the same on every worker of a run, as a table of names and digests (`membership.admission`)."""

from __future__ import annotations

import hashlib
import platform
import site
import sys
import sysconfig
from collections.abc import Mapping, MutableMapping
from importlib import metadata
from pathlib import Path
from types import ModuleType

from shoal import __version__

PACKAGES = ("torch", "deepspeed", "numpy", "ray", "pyarrow")
"""Their versions decide about numbers or about what processes say to each other."""
_SHOAL = Path(__file__).parents[1]


def identity_of(
    model_digest: str, arithmetic: str | None, loaded: MutableMapping[str, str] | None = None
) -> dict[str, str]:
    """The identity of this process, which has unpickled the job and built its model.

    `model_digest`: of the model (`engines.factory.model_facts`). `arithmetic`: what its kernels compute; None: rounding
    may differ between workers (`fast` numerics). `loaded`: of a process that serves several runs, see `note_modules`.
    """
    table = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            table[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    table |= note_modules({} if loaded is None else loaded)
    table["model"] = model_digest[:16]
    if arithmetic is not None:
        table["arithmetic"] = arithmetic
    return table


def note_modules(loaded: MutableMapping[str, str]) -> MutableMapping[str, str]:
    """Add the digests of Shoal itself and of the user's modules to `loaded`, as far as they are not there: a process
    goes on with what it has imported, whatever becomes of the files."""
    if "shoal" not in loaded:
        loaded["shoal"] = f"{__version__} ({_package_digest(_SHOAL)})"
    for name, file in _users_modules():
        if name not in loaded:
            loaded[name] = _digest([file])
    return loaded


def changed_modules(loaded: Mapping[str, str]) -> list[str]:
    """What this process has imported and is not any more what its file says: a run that begins now must not begin
    here."""
    return [name for name, file in _users_modules() if loaded.get(name) not in (None, _digest([file]))]


def _users_modules() -> list[tuple[str, Path]]:
    found = [(f"module {name}", _users(module)) for name, module in list(sys.modules.items())]
    return [(name, file) for name, file in found if file is not None]


def _package_digest(folder: Path) -> str:
    return _digest(sorted(folder.rglob("*.py")))


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


_INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *site.getsitepackages())


def _users(module: ModuleType) -> Path | None:
    """The source of a module that no installation manages: the user's own, which may differ between nodes."""
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py") or module.__name__ in ("__main__", "__mp_main__"):
        return None
    if module.__name__.partition(".")[0] == "shoal" or file.startswith(_INSTALLED) or "site-packages" in file:
        return None
    path = Path(file)
    return path if path.is_file() else None
