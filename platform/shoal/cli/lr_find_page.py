"""What `shoal lr-find` draws: a chart with a logarithmic axis of rates, and a page of its own around it."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from shoal.cli.charts import Axes, Line, Mark, svg

if TYPE_CHECKING:
    from shoal.launch.lr_find import RateFound
    from shoal.optim.range_test import Finding

ABOVE = 1.1
"""Height of the chart over the loss that the test began with; what rises higher is cut off."""


def title(done: RateFound) -> str:
    """`gpt: adamw, loss over rates from 1e-06 to 1, 100 steps`."""
    asked = done.range
    return (
        f"{done.job.name}: {done.job.optimizer.name}, loss over rates from {asked.low:g} to {asked.high:g}, "
        f"{asked.steps} steps"
    )


def axes(found: Finding) -> Axes:
    """Of a chart of all steps."""
    top = ABOVE * max(found.smoothed[0], min(found.smoothed), 1e-12)
    return Axes(x=found.rates[-1], x_from=found.rates[0], x_unit="", y=top)


def picture(done: RateFound) -> str:
    """The losses, smoothed and as they were, with the rates that are told of marked. SVG."""
    found = done.finding
    ends = axes(found)

    def mark(rate: float, name: str) -> Mark:
        span = math.log(found.rates[-1] / found.rates[0])
        return Mark(place=math.log(rate / found.rates[0]) / span, name=name)

    marks = [mark(found.steepest, f"fastest fall {found.steepest:.2g}")] if found.steepest is not None else []
    if found.tenth is not None and found.tenth >= found.rates[0]:
        marks.append(mark(found.tenth, f"lowest / 10: {found.tenth:.2g}"))
    lines = [
        Line(name=name, values=[min(max(v, 0.0), ends.y) for v in values])
        for name, values in (("smoothed loss", found.smoothed), ("loss", found.losses))
    ]
    return svg(lines, ends, title=title(done), marks=marks)


def page(done: RateFound, command: str | None) -> str:
    """The whole result as one HTML file that asks the network for nothing."""
    found = done.finding
    drawn = picture(done) if len(found.smoothed) > 1 else ""
    rows = {
        "suggested peak rate": found.suggestion,
        "fastest fall at": found.steepest,
        "lowest loss at": found.lowest,
        "a tenth of that": found.tenth,
        "diverged at": found.diverged_at,
    }
    cells = "\n".join(
        f"<tr><th>{name}</th><td>{'–' if value is None else f'{value:.3g}'}</td></tr>" for name, value in rows.items()
    )
    steps = "\n".join(
        f"<tr><td>{i}</td><td>{rate:.4g}</td><td>{loss:.5g}</td><td>{smooth:.5g}</td></tr>"
        for i, (rate, loss, smooth) in enumerate(zip(found.rates, found.losses, found.smoothed, strict=True), 1)
    )
    go_on = f"<p>Go on with:</p><pre>{html.escape(command)}</pre>" if command else ""
    return _PAGE.format(
        title=html.escape(title(done)), drawn=drawn, reason=html.escape(found.reason), cells=cells, go_on=go_on,
        steps=steps, folder=html.escape(str(done.folder.path)),
    )  # fmt: skip


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: #1b2430; margin: 2em auto;
  max-width: 780px; padding: 0 1em }}
svg {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ text-align: left; padding: 2px 16px 2px 0; border-bottom: 1px solid #e3e6eb; font-weight: 400;
  font-variant-numeric: tabular-nums }}
th {{ color: #5d6978 }}
pre {{ background: #f4f5f7; padding: 8px 12px; overflow-x: auto }}
footer {{ color: #5d6978; margin-top: 2em }}
</style>
{drawn}
<p>{reason}</p>
<table>
{cells}
</table>
{go_on}
<details><summary>All steps</summary>
<table><tr><th>step</th><th>rate</th><th>loss</th><th>smoothed</th></tr>
{steps}
</table></details>
<footer>{folder}</footer>
</html>
"""
