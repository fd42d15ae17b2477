"""Moving a training state between members, against a plain copy of the same bytes between the same members over gloo.

For each engine and each change of size: members train a step of a model of about 10 million parameters and keep their
snapshots; some are lost (a survivor has the copy), some are new. Then, in the new view, two arms in turn: the exchange
as a worker runs it (telling, planning, packing, sending, unpacking), and one isend/irecv per pair of members of
as many bytes, packed already. A figure is that of the slowest member. Receiving memory is fresh in both arms.

    python -m benchmarks.reshard [--n 15] [--width 320] [--engines replicated zero1 zero2 zero3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

import shoal
from benchmarks.common import machine, ratios, spread, write_result
from shoal.engines import make_engine
from shoal.state.exchange import Exchange
from shoal.state.exchange_plan import plan_moves
from shoal.state.layout import Extent, Shard
from shoal.tasks import LanguageModel
from tests.support.process_pool import ProcessPool

CHANGES = ((2, 3), (4, 3), (4, 5), (3, 2))
CONTEXT = 32


def job(engine: str, width: int = 320) -> shoal.Job:
    kind = shoal.Engine() if engine == "replicated" else shoal.Engine(name="zero", stage=int(engine[-1]))
    return shoal.Job(
        name="reshard",
        task=LanguageModel(context=CONTEXT, layers=8, heads=8, width=width),
        data=shoal.Data(train="none"),
        batch=shoal.Batch(size=8, virtual_shards=8),
        budget=shoal.Budget(steps=1),
        engine=kind,
    )


def in_old_view(kept: dict[str, Any], rank: int, size: int, engine: str, width: int = 320) -> Shard | None:
    """One step, so that there is an optimizer state; returns this member's snapshot, if it has one."""
    kept.clear()
    kept["engine"] = make_engine(job(engine, width), torch.device("cpu"))
    kept["engine"].form(rank, size)
    kept["engine"].micro_step({"tokens": torch.randint(0, 256, (1, CONTEXT + 1))}, 1 / size, last=True)
    kept["engine"].update(0.01)
    kept["held"] = [] if kept["engine"].keeps_state else [kept["engine"].read_state()]
    kept["current"] = True
    kept["engine"].leave()
    return kept["held"][0] if kept["held"] else None


def be_new(kept: dict[str, Any], rank: int, size: int, engine: str, width: int = 320) -> None:
    """A process that has seen nothing of the state."""
    kept.clear()
    kept["engine"] = make_engine(job(engine, width), torch.device("cpu"))


def keep_copies(kept: dict[str, Any], rank: int, size: int, shards: list[Shard]) -> None:
    kept["held"] += shards


def in_new_view(kept: dict[str, Any], rank: int, size: int, givers: int, n: int) -> list[tuple[float, float, int]]:
    """(seconds of the exchange, seconds of the plain copy, bytes that the busiest member receives), `n` times."""
    engine = kept["engine"]
    engine.form(rank, size)
    current = kept.get("current", False)
    if engine.keeps_state:
        kept["held"] = [engine.offered(rank, givers)] if current else []
    wants = {} if engine.keeps_state and current else engine.wanted()
    offers = kept.get("held", [])
    traffic = bytes_between(offers, wants, size)
    most = max(sum(traffic[a][b] for a in range(size)) for b in range(size))
    out = []
    for i in range(n + 1):
        arms = {"exchange": lambda: Exchange(offers, wants), "plain": lambda: plain(traffic, rank)}
        taken = {name: timed(arms[name]) for name in (list(arms) if i % 2 == 0 else list(arms)[::-1])}
        out.append((taken["exchange"], taken["plain"], most))
    engine.leave()
    return out[1:]  # the first opens connections and memory


def timed(what: Any) -> float:
    dist.barrier()
    begun = time.perf_counter()
    result = what()
    seconds = torch.tensor(time.perf_counter() - begun)
    del result
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds)


def bytes_between(offers: list[Shard], wants: dict[str, tuple[Extent, ...]], size: int) -> list[list[int]]:
    """[giver][taker] -> bytes over the network."""
    told: list[Any] = [None] * size
    dist.all_gather_object(told, ([s.extents for s in offers], wants))
    out = [[0] * size for _ in range(size)]
    for key in dict.fromkeys(key for _, w in told for key in w):
        for move in plan_moves([o for o, _ in told], [w.get(key, ()) for _, w in told]):
            if move.giver != move.taker:
                out[move.giver][move.taker] += 4 * move.size
    return out


def plain(traffic: list[list[int]], rank: int) -> list[torch.Tensor]:
    """As many bytes from and to the same members: one message for each pair."""
    size = len(traffic)
    into = {peer: torch.empty(traffic[peer][rank] // 4) for peer in range(size) if traffic[peer][rank]}
    works = [dist.irecv(tensor, peer) for peer, tensor in into.items()]
    works += [dist.isend(SOURCE[: n // 4], peer) for peer, n in enumerate(traffic[rank]) if n]
    for work in works:
        assert work is not None
        work.wait()
    return list(into.values())


SOURCE = torch.ones(0)


def fill_source(kept: dict[str, Any], rank: int, size: int) -> None:
    global SOURCE  # one per process
    SOURCE = torch.ones(100_000_000)


def measure(pool: ProcessPool, engine: str, before: int, after: int, n: int, width: int) -> str:
    """One row of the table."""
    shards = pool.run(in_old_view, engine, width, members=range(before))
    if after < before:
        lost = [s for s in shards[after:] if s is not None]
        pool.run(keep_copies, lost, members=[0])
    else:
        pool.run(be_new, engine, width, members=range(before, after))
    rows = pool.run(in_new_view, min(before, after), n, members=range(after))[0]
    exchange, copy = [r[0] for r in rows], [r[1] for r in rows]
    most = rows[0][2]
    if not most:
        return f"| {engine} | {before} to {after} | 0 | nothing moves | | | |\n"
    share = ratios(copy, exchange)
    speed = most / 1e6 / statistics.median(exchange)
    return (
        f"| {engine} | {before} to {after} | {most / 1e6:.0f} | {spread(exchange)} | {spread(copy)} | {speed:.0f} | "
        f"{spread(share, 2)} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=15, help="times that each arm runs in each case")
    parser.add_argument("--engines", nargs="+", default=["replicated", "zero1", "zero2", "zero3"])
    parser.add_argument("--width", type=int, default=320, help="of the model; 320 gives 10 million parameters")
    options = parser.parse_args()
    pool = ProcessPool(max(max(change) for change in CHANGES))
    text = (
        f"# Moving a state between members\n\n`python -m benchmarks.reshard --n {options.n} --width {options.width}`, "
        f"{12 * 8 * options.width**2 / 1e6:.0f} million parameters, {machine()}, gloo over loopback.\n"
        "Of members that are lost, a survivor has the copy. Medians (range, n) of the slowest member.\n\n"
        "| engine | members | MB received by the busiest | exchange, s | plain copy, s | exchange, MB/s | "
        "speed of the plain copy reached |\n|---|---|---|---|---|---|---|\n"
    )
    try:
        pool.run(fill_source, members=range(pool.size))
        for engine in options.engines:
            for before, after in CHANGES:
                if engine == "replicated" and after < before:
                    continue  # survivors have everything
                text += measure(pool, engine, before, after, options.n, options.width)
                print(text.splitlines()[-1], flush=True)
    finally:
        pool.close()
    write_result("reshard" if options.width == 320 else f"reshard_width_{options.width}", text)


if __name__ == "__main__":
    main()
