"""torchft in a virtual environment of its own, under `build/`: `python -m benchmarks.churn.torchft_env`."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "torchft"
BIN = FOLDER / "bin"
TORCHFT = "torchft==0.2.0"


def found() -> bool:
    """Whether it was made."""
    return (BIN / "torchft_lighthouse").exists()


def make() -> None:
    """Make it. torch is pinned to the version that everything else runs with, whose build is for this machine: an open
    range would fetch gigabytes. Raises CalledProcessError."""
    torch = f"torch=={version('torch').partition('+')[0]}"
    subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    pip = [str(BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, torch, f"numpy=={version('numpy')}", TORCHFT], check=True)


if __name__ == "__main__":
    make()
