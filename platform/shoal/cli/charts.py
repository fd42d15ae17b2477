"""Small charts: of blocks in a terminal, and as a file of their own (SVG)."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_BLOCKS = " ▁▂▃▄▅▆▇█"
_COLORS = ("#1f6feb", "#d9680f", "#1a8754", "#cf2f3c", "#7a4fd0", "#0c8599", "#8a95a3")
"""Those of the report; a line beyond them is dashed."""

_LETTERS = 84
"""In a row of the legend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A curve over evenly spaced places from 0 to the end of the axis, both included."""

    name: str
    values: Sequence[float]
    """Not below 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """What the two axes end with; both begin with 0, unless `x_from` is set."""

    x: float
    x_unit: str
    y: float
    x_from: float | None = None
    """The horizontal axis is logarithmic, and begins here."""

    def ticks(self, parts: int) -> list[tuple[float, str]]:
        """(share of the horizontal axis, what stands there), the last one with the unit."""
        if self.x_from is None:
            found = [(i / parts, f"{self.x * i / parts:g}") for i in range(parts + 1)]
        else:
            ratio = self.x / self.x_from
            found = [(i / parts, f"{self.x_from * ratio ** (i / parts):.2g}") for i in range(parts + 1)]
        return [*found[:-1], (1.0, f"{found[-1][1]} {self.x_unit}".rstrip())]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A place on the horizontal axis that is pointed at."""

    place: float
    """As a share of the axis."""
    name: str


def blocks(values: Sequence[float], axes: Axes, *, rows: int) -> Iterator[str]:
    """A filled curve, one column for each value, with its axes: `rows` + 2 lines. What is not 0 is seen."""
    levels = [max(round(v / axes.y * rows * 8), 1 if v > 0 else 0) for v in values]
    named = {0: f"{axes.y:.3g}", rows // 2: f"{axes.y * (1 - (rows // 2) / rows):.3g}"}
    width = max(len(label) for label in (*named.values(), "0"))
    for row in range(rows):
        below = 8 * (rows - 1 - row)
        line = "".join(_BLOCKS[min(max(level - below, 0), 8)] for level in levels)
        yield f"{named.get(row, ''):>{width}} {'┤' if row in named else '│'}{line}".rstrip()
    yield f"{'0':>{width}} └{'─' * len(values)}"
    yield f"{'':>{width}}  {_below(axes, len(values))}"


def _below(axes: Axes, columns: int) -> str:
    """The labels of the horizontal axis: the first at its left end, the last one at its right."""
    text = ""
    for share, label in axes.ticks(2 if columns < 60 else 4):
        at = round(share * columns) - (0 if share == 0 else len(label) if share == 1 else len(label) // 2)
        text = (text.ljust(at) if at > len(text) else f"{text} " if text else "") + label
    return text


def svg(lines: Sequence[Line], axes: Axes, *, title: str, marks: Sequence[Mark] = ()) -> str:
    """All `lines` in one chart with a legend, as the text of an SVG file."""
    left, top, width, height = 70, 44, 660, 280
    bottom = top + height
    out = [f'<text x="{left}" y="24" class="title">{html.escape(title)}</text>']
    for i in range(5):
        y = bottom - height * i / 4
        out.append(f'<line x1="{left}" x2="{left + width}" y1="{y:g}" y2="{y:g}" class="{"grid" if i else "axis"}"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:g}" text-anchor="end">{axes.y * i / 4:.3g}</text>')
    for share, label in axes.ticks(4):
        anchor = "end" if share == 1 else "middle" if share else "start"
        out.append(f'<text x="{left + width * share:g}" y="{bottom + 20}" text-anchor="{anchor}">{label}</text>')
    for i, mark in enumerate(marks):
        x, anchor = left + width * mark.place, "end" if mark.place > 0.5 else "start"
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="mark"/>')
        inside = x + (-6 if anchor == "end" else 6)
        out.append(
            f'<text x="{inside:.1f}" y="{bottom - 8 - 18 * i}" text-anchor="{anchor}">{html.escape(mark.name)}</text>'
        )
    below = bottom + 50
    for i, line in enumerate(lines):
        dash = ' stroke-dasharray="6 4"' if i // len(_COLORS) % 2 else ""
        style = f'stroke="{_COLORS[i % len(_COLORS)]}"{dash}'
        last = max(1, len(line.values) - 1)
        points = " ".join(
            f"{left + width * j / last:.1f},{bottom - height * value / axes.y:.1f}"
            for j, value in enumerate(line.values)
        )
        out.append(f'<polyline points="{points}" {style}/>')
        out.append(f'<line x1="{left}" x2="{left + 26}" y1="{below - 4}" y2="{below - 4}" stroke-width="2" {style}/>')
        for row in textwrap.wrap(line.name, _LETTERS):
            out.append(f'<text x="{left + 36}" y="{below}">{html.escape(row)}</text>')
            below += 18
        below += 4
    return _PAGE.format(width=left + width + 30, height=below, inside="\n".join(out))


_PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<style>
text {{ font: 13px system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: #5d6978 }}
.title {{ font-size: 15px; font-weight: 600; fill: #1b2430 }}
polyline {{ fill: none; stroke-width: 2; stroke-linejoin: round }}
.grid {{ stroke: #e3e6eb }}
.axis {{ stroke: #8a95a3 }}
.mark {{ stroke: #5d6978; stroke-dasharray: 3 3 }}
</style>
<rect width="100%" height="100%" fill="#ffffff"/>
{inside}
</svg>
"""
