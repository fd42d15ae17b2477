"""The course of a run whose batch may grow: which sizes are known, and who decides the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from shoal.coordinator.book import measured_of
from shoal.coordinator.plan import RunPlan
from shoal.coordinator.spending import course_of
from shoal.job.growth import ByNoise, Milestones, grows_on_the_way
from shoal.job.steps import batches_of, samples_wanted
from shoal.membership.course import Course, ReadCourse
from shoal.membership.sizes import MilestoneSizes, NoiseRule, NoiseSizes, Sizes
from shoal.tracking.ledger import Entry, effective


def grown_course(plan: RunPlan, entries: Sequence[Entry], *, after: int) -> Course:
    """The course of the run from step `after` on. `entries`: a ledger with steps of it that were decided already."""
    job, sizes = plan.job, _sizes(plan, entries, after)
    if isinstance(job.batch.growth, ByNoise) and job.budget.steps is None and job.budget.spent is None:
        return ReadCourse(sizes, samples_wanted(job, plan.train.samples), after=after)
    return course_of(job, sizes, after=after, entries=entries)


def _sizes(plan: RunPlan, entries: Sequence[Entry], after: int) -> Sizes:
    batch, total = plan.job.batch, plan.total_steps
    if not grows_on_the_way(plan.job):
        return Sizes(plan.positions, batches_of(plan.job, total))
    decided = [*plan.positions.spans, *_decided(entries)]
    growth = batch.growth
    if isinstance(growth, Milestones):
        return MilestoneSizes(partial(growth.size_at, batch.size), batch.size, total, decided)
    assert isinstance(growth, ByNoise)
    rule = NoiseRule(every=growth.every, most=growth.most, factor=growth.factor, threshold=growth.threshold)
    sizes = NoiseSizes(rule, batch.size, total, decided, after=after)
    for entry in effective(entries):
        if entry["kind"] == "commit":
            sizes.note(int(entry["step"]), measured_of(entry))
    return sizes


def _decided(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """(step, size from it on), as a ledger says it."""
    for entry in entries:
        if entry["kind"] == "start":
            yield from ((int(step), int(size)) for step, size in entry.get("positions", ()))
        elif entry["kind"] == "batch":
            yield int(entry["step"]), int(entry["size"])
