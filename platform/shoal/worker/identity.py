"""What must be the same on every worker of a run, as a table of names and digests (`membership.admission`)."""

from __future__ import annotations

import hashlib
import platform
import site
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import ModuleType

from shoal import __version__

PACKAGES = ("torch", "deepspeed", "numpy", "ray", "pyarrow")
"""Their versions decide about numbers or about what processes say to each other."""
_SHOAL = Path(__file__).parents[1]


def identity_of(model_digest: str, arithmetic: str | None) -> dict[str, str]:
    """The identity of this process, which has unpickled the job and built its model.

    `model_digest`: of the model (`engines.factory.model_facts`). `arithmetic`: what its kernels compute; None: rounding
    may differ between workers (`fast` numerics).
    """
    table = {"Python": platform.python_version(), "shoal": f"{__version__} ({_package_digest(_SHOAL)})"}
    for name in PACKAGES:
        try:
            table[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    for name, module in list(sys.modules.items()):
        if (file := _users(module)) is not None:
            table[f"module {name}"] = _digest([file])
    table["model"] = model_digest[:16]
    if arithmetic is not None:
        table["arithmetic"] = arithmetic
    return table


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
