"""Ranges as people type them: `2:6`."""

from __future__ import annotations

import re

import click

OPEN = 1 << 62
"""The last step of `10:`."""


class StepRange(click.ParamType):
    """`A:B`, `A:`, `:B` or `A` -> (first, last), both included."""

    name = "range"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d*)(:?)(\d*)", str(value))
        if match is None or not (match[1] or match[3]):
            self.fail(f"{value!r} is no range of steps; write 100:200, 100: (to the end), :200 or 100", param, ctx)
        first = int(match[1] or 1)
        last = int(match[3] or OPEN) if match[2] else first
        if not 1 <= first <= last:
            self.fail(f"{value!r} holds no step: steps count from 1, and the first goes before the last", param, ctx)
        return first, last


class Size(click.ParamType):
    """`MIN:MAX` or `N` -> (min, max) workers."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+)(?::(\d+))?", str(value))
        if match is None:
            self.fail(f"{value!r} is no number of workers; write 4, or 2:6 for between 2 and 6", param, ctx)
        low = int(match[1])
        high = int(match[2] or low)
        if low < 1:
            self.fail(f"{value!r}: a run needs at least 1 worker; `shoal stop RUN` ends it", param, ctx)
        if low > high:
            self.fail(f"{value!r}: min={low} is more than max={high}; write {high}:{low}", param, ctx)
        return low, high
