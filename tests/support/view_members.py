"""Members of views in a pool's processes: they form groups, train, and break where a script says."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Listener
from typing import Any, Literal

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from shoal.engines import make_engine
from shoal.engines.protocol import Engine
from shoal.job import Job
from shoal.membership.messages import Fresh, ViewOrder
from shoal.membership.view import View
from shoal.optim.schedules import learning_rate
from shoal.state.layout import Shard
from shoal.worker.group import cut_group, dissolve_group, form_group, open_store
from tests.support.engine_runs import TOTAL, reader, run_step
from tests.support.process_pool import ProcessPool

TOKEN = b"known to the members"
LIMIT_S = 300.0
"""Time-out of the groups: nobody in these tests is ever to be freed by it."""


@dataclass(frozen=True)
class Fault:
    """What one member does to itself, and where."""

    member: int
    step: int
    phase: Literal["forward", "backward", "update"]
    signal: int = signal.SIGKILL
    """0: an exception instead."""
    note: str = ""
    """File to which the moment is written, on the clock of `time.monotonic`."""

    def strike(self) -> None:
        """Do it."""
        if self.note:
            with open(self.note, "w") as file:
                file.write(str(time.monotonic()))
        if not self.signal:
            raise ConnectionError("as the script says")
        os.kill(os.getpid(), self.signal)


@dataclass
class Told:
    """How a member came out of a view."""

    steps: int = 0
    """Updates done."""
    error: str | None = None
    raised_at: float = 0.0
    """When its step failed, on the clock of `time.monotonic`."""
    left_after: float = 0.0
    """Seconds from then until it was out of the view."""
    norms: list[float] = field(default_factory=list)
    shard: Shard | None = None
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)


def open_here(kept: dict[str, Any]) -> tuple[str, Any]:
    """Addresses of the process's rendezvous and of its line, by which `cut` reaches it while it is busy."""
    if "store" not in kept:
        kept["store"], kept["address"] = open_store("127.0.0.1", TOKEN)
        kept["line"] = Listener(("127.0.0.1", 0))
        threading.Thread(target=_obey, args=(kept["line"],), daemon=True).start()
    return kept["address"], kept["line"].address


def _obey(line: Listener) -> None:
    while True:
        with line.accept() as caller:
            begun = time.monotonic()
            cut_group(caller.recv())
            caller.send((begun, time.monotonic()))


class Crew:
    """A pool's processes as members of one view after another; the test is their coordinator."""

    def __init__(self, pool: ProcessPool) -> None:
        self.pool = pool
        self.view = 0
        self._doors: dict[int, tuple[str, Any]] = {}

    def start(
        self, members: Sequence[int], function: Callable[..., Any], *args: Any, absent: Sequence[int] = ()
    ) -> None:
        """Begin the next view: `function(kept, order, *args)` on each of `members` that is not `absent`."""
        self.view += 1
        address = self._door(members[0])[0]
        present = [m for m in members if m not in absent]
        for member in present:
            self._door(member)
        for member in present:
            self.pool.start(member, function, order_for(self.view, members, member, address), *args)

    def told(self, members: Sequence[int]) -> list[Any]:
        """What they returned."""
        return [self.pool.answer(member) for member in members]

    def run(self, members: Sequence[int], *args: Any) -> list[Told]:
        """A view in which they train, from its beginning to its end: see `live`."""
        self.start(members, live, *args)
        return self.told(members)

    def cut(self, members: Sequence[int]) -> list[tuple[float, float]]:
        """Cut the view on each of them; when each began and had done so, on the clock of `time.monotonic`."""
        out = []
        for member in members:
            with Client(self._door(member)[1]) as line:
                line.send(self.view)
                out.append(line.recv())
        return out

    def replace(self, member: int) -> None:
        """A new process in the place of one that died."""
        self.pool.renew(member)
        self._doors.pop(member, None)

    def _door(self, member: int) -> tuple[str, Any]:
        if member not in self._doors:
            self.pool.start(member, open_here)
            self._doors[member] = self.pool.answer(member)
        return self._doors[member]


def order_for(view: int, members: Sequence[int], member: int, address: str) -> ViewOrder:
    """The order of one member; ranks are the places in `members`."""
    return ViewOrder(View(view, tuple(f"w{m}" for m in members)), f"w{member}", address, Fresh())


def live(
    kept: dict[str, Any],
    order: ViewOrder,
    job: Job,
    steps: tuple[int, int],
    state: Sequence[Shard] | None = None,
    fault: Fault | None = None,
) -> Told:
    """Steps (done, stop] in one view, to its end in good order or in bad. `state`: None: fresh, or what is here."""
    engine: Engine = kept["engine"] if kept.get("job") == job else make_engine(job, torch.device("cpu"))
    kept["job"], kept["engine"] = job, engine
    told, rank, size = Told(), order.view.rank(order.member), order.view.size
    try:
        form_group(order, torch.device("cpu"), kept["store"] if rank == 0 else None, LIMIT_S)
        engine.form(rank, size)
        if state is not None:
            engine.write_state(reader(state), state[0].scalars, state[0].buffers)
        for step in range(steps[0] + 1, steps[1] + 1):
            mine = fault is not None and fault.step == step and order.member == f"w{fault.member}"
            with striking(engine, fault if mine else None):
                run_step(engine, job, rank, size, step)
                told.norms.append(engine.update(learning_rate(job.optimizer.lr, job.schedule, step / TOTAL)))
            told.steps += 1
        told.shard, told.parameters = engine.read_state(), engine.full_parameters()
    except Exception as error:  # noqa: BLE001 - which one it is, is for the test to judge
        told.raised_at = time.monotonic()
        cut_group(order.view.number)
        told.error = f"{type(error).__module__}.{type(error).__name__}: {error}"
    engine.leave()
    dissolve_group()
    told.left_after = time.monotonic() - told.raised_at
    return told


@contextmanager
def striking(engine: Engine, fault: Fault | None) -> Iterator[None]:
    """Inside, the fault comes in the middle of its phase."""
    if fault is None:
        yield
        return
    parameters = [p for p in engine.model.parameters() if p.requires_grad]
    leaves = [m for m in engine.model.modules() if next(m.children(), None) is None]
    if fault.phase == "forward":
        handle: Any = leaves[len(leaves) // 2].register_forward_hook(lambda *_: fault.strike())
    elif fault.phase == "backward":
        handle = parameters[len(parameters) // 2].register_hook(lambda *_: fault.strike())
    else:
        handle = register_optimizer_step_pre_hook(lambda *_: fault.strike())
    try:
        yield
    finally:
        handle.remove()
