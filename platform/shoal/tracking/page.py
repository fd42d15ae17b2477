"""One HTML file from data and scripts: opens anywhere, and asks the network for nothing."""

from __future__ import annotations

import html
import json
import math
import os
import threading
from importlib import resources
from pathlib import Path
from typing import Any


def publish(path: Path, *, title: str, data: Any, style: str = "", scripts: str) -> Path:
    """Write the page at `path`, in place of an older one, so that a reader sees the one or the other; returns `path`.

    `data`: JSON values without numbers that are not finite; `scripts` find them in the element `data`, and the
    functions of `charts.js` and `parts.js`. `style` is added to that of all pages. Raises OSError.
    """
    page = asset("shoal.tracking", "report.html")
    # `<` never appears inside the script element, so that no value can end it.
    blob = json.dumps(data, separators=(",", ":"), default=str, allow_nan=False).replace("<", "\\u003c")
    for mark, text in (
        ("/*STYLE*/", asset("shoal.tracking", "report.css") + style),
        ("/*CHARTS*/", asset("shoal.tracking", "charts.js")),
        ("/*PARTS*/", asset("shoal.tracking", "parts.js")),
        ("/*PAGE*/", scripts),
        ("@TITLE@", html.escape(title)),
        ("@DATA@", blob),
    ):
        page = page.replace(mark, text, 1)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(page)
    os.replace(temporary, path)
    return path


def asset(package: str, name: str) -> str:
    """The text of a file among the `assets` of `package`."""
    return (resources.files(package) / "assets" / name).read_text()


def number(value: Any, digits: int | None) -> float | None:
    """`value` with so many digits (None: all); None if it is not known or not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(value) if digits is None else float(f"{value:.{digits}g}")


def finite(value: Any) -> Any:
    """`value` with None in the place of numbers that are not finite, wherever they are in it."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
