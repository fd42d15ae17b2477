"""What `exact` numerics cost against `fast`: the same engine, model, batch and workers, step by step in turn.

Two sets of worker processes, one prepared for each numerics, are up all the time; a few steps are run in the one, then
in the other, in changing order, while the other one sleeps. A ratio is that of two such neighbours: of the median step
by the clock, and of the processor time that all workers together took, which other tenants of the machine move less.

    python -m benchmarks.exact [--n 10] [--workers 2 4] [--engines replicated zero1 zero2 zero3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import shoal
from benchmarks.common import interleave, machine, ratios, spread, write_result
from shoal.tasks import LanguageModel
from tests.support.process_pool import ProcessPool

STEPS, WARM, BATCH, SHARDS = 4, 2, 32, 8
SECONDS = ("clock", "processor")
TASK = {"context": 128, "layers": 6, "heads": 6, "width": 384}


def job(engine: str, workers: int, numerics: Literal["fast", "exact"], dropout: float) -> shoal.Job:
    kind = shoal.Engine() if engine == "replicated" else shoal.Engine(name="zero", stage=int(engine[-1]))  # type: ignore[arg-type]
    return shoal.Job(
        task=LanguageModel(**TASK, dropout=dropout),  # type: ignore[arg-type]
        data=shoal.Data(train="none"),
        batch=shoal.Batch(size=BATCH, virtual_shards=SHARDS),
        budget=shoal.Budget(steps=10**6),
        workers=shoal.Workers(min=workers, max=workers),
        engine=kind,
        numerics=numerics,
    )


@dataclass(frozen=True)
class Taken:
    """Seconds of a step."""

    clock: float
    processor: float
    parts: tuple[float, float, float]
    """Compute, communicate, update: of the last step."""


def run_steps(kept: dict[str, Any], rank: int, size: int, job: shoal.Job) -> Taken:
    """In a worker: some steps in a view of their own."""
    import torch

    from shoal.engines import make_engine
    from shoal.engines.micro_batches import even_bounds, plan
    from shoal.engines.randomness import seed_shard

    if kept.get("job") != job:
        kept.update(job=job, engine=make_engine(job, torch.device("cpu")), state=None)
    engine = kept["engine"]
    engine.reset()
    bounds = even_bounds(SHARDS, size)
    engine.form(rank, size, bounds)
    tokens = torch.randint(0, 256, (BATCH, TASK["context"] + 1), generator=torch.Generator().manual_seed(0))
    per_shard, taken, worked = BATCH // SHARDS, [], []
    try:
        for step in range(1, WARM + STEPS + 1):
            begun, busy = time.perf_counter(), time.process_time()
            micro_batches = plan(
                bounds,
                rank,
                merge=bool(engine.merges_shards),
                shard_size=per_shard,
                micro_limit=None,
                equal=engine.equal_micro_batches,
            )
            for i, micro in enumerate(micro_batches):
                first, last = micro.shards
                seed_shard(0, step, first)
                batch = {"tokens": tokens[first * per_shard : last * per_shard]}
                engine.micro_step(batch, micro.share, last=i == len(micro_batches) - 1)
            engine.update(1e-4)
            taken.append(time.perf_counter() - begun)
            worked.append(time.process_time() - busy)
        times = engine.times
        parts = (times.compute_s, times.communicate_s, times.update_s)
        return Taken(statistics.median(taken[WARM:]), statistics.mean(worked[WARM:]), parts)
    finally:
        engine.leave()


def measure(engine: str, workers: int, dropout: float, pools: dict[str, ProcessPool], n: int) -> str:
    """One row of the table."""

    def arm(numerics: Literal["fast", "exact"]) -> Taken:
        task = job(engine, workers, numerics, dropout)
        said = pools[numerics].run(run_steps, task, members=range(workers), timeout_s=600)
        return Taken(said[0].clock, sum(taken.processor for taken in said), said[0].parts)

    found = interleave(
        {"fast": lambda: arm("fast"), "exact": lambda: arm("exact")},
        n,
        lambda name, s: print(
            f"{engine} {workers} dropout={dropout} {name}: {s} load {os.getloadavg()[0]}", flush=True
        ),
    )
    clock, processor = ([[getattr(t, what) for t in found[name]] for name in ("exact", "fast")] for what in SECONDS)
    split = " / ".join("+".join(f"{s:.2f}" for s in found[name][-1].parts) for name in ("fast", "exact"))
    return (
        f"| {engine} | {workers} | {'no' if dropout else 'yes'} | {spread(clock[1])} | {spread(ratios(*clock))} "
        f"| {spread(ratios(*processor))} | {split} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--engines", nargs="+", default=["replicated", "zero1", "zero2", "zero3"])
    options = parser.parse_args()
    pools = {name: ProcessPool(max(options.workers), numerics=name) for name in ("fast", "exact")}  # type: ignore[arg-type]
    try:
        rows = [
            measure(engine, workers, dropout, pools, options.n)
            for workers in options.workers
            for engine in options.engines
            for dropout in ((0.0, 0.1) if engine == "replicated" else (0.0,))
        ]
    finally:
        for pool in pools.values():
            pool.close()
    write_result(
        "exact",
        f"# What `exact` numerics cost\n\n{machine()} (load at the end; {os.cpu_count()} cores for all workers)\n\n"
        f"GPT {TASK}, batch {BATCH}, {SHARDS} virtual shards, fp32, AdamW, clipping, one thread per worker; seconds "
        f"per step: median of {STEPS} steps after {WARM}; n pairs. Without dropout `fast` runs a member's shards in "
        f"one pass; with dropout it cannot.\n\n"
        "| engine | workers | fast merges shards | fast s | ratio by the clock | ratio of processor time | one step: "
        "compute+communicate+update, fast / exact |\n|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n",
    )


if __name__ == "__main__":
    main()
