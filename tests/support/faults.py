"""Faults that are scripted as (rank, step, phase) and happen inside a real worker process, once in all of them.

The task carries the script into the workers. Building the model there hooks the phases of a step, by which the process
knows where it is; production code has no idea of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.support.sabotage import Digits

Phase = Literal["read", "forward", "backward", "update", "updated", "snapshot", "evaluate", "forming", "state"]
"""read: fetching samples. forward, backward: in the middle of the pass. update: as the optimizer begins. updated: as it
is done, before anybody heard of it. snapshot: before the host copy. forming: of a later view. state: while it moves."""
How = Literal["SIGKILL", "SIGSTOP", "raise", "hold", "block", "cut", "slow", "node"]
"""hold: keep the interpreter's lock, as a C extension can. block: wait for ever. cut: lose all connections to peers.
slow: this process computes at a fraction of its speed from now on. node: every process of this Ray node is killed."""
SLOW_S = 0.01
"""What each virtual shard costs a slow process; some milliseconds is what it costs the others."""


@dataclass(frozen=True)
class Fault:
    """`how` happens to the member of rank `rank` in `phase` of step `step` (forming, state: of the second view)."""

    how: How
    rank: int
    step: int
    phase: Phase
    after: str = ""
    """A file that must be there before it happens, such as the manifest of a checkpoint."""

    def mark(self, folder: str) -> Path:
        """The file that is there once it has happened."""
        return Path(folder) / f"{self.how}-{self.rank}-{self.step}-{self.phase}"


@dataclass(frozen=True)
class Faulty(Digits):
    """`Digits` in whose workers `faults` happen; `folder` keeps the marks."""

    faults: tuple[Fault, ...] = ()
    folder: str = ""

    def build(self) -> Any:
        if self.faults and "ray" in __import__("sys").modules:
            _hook()
            _HERE.slow_s = 0.0
        return super().build()

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(self._logits(model, batch), batch["label"])

    def sample_losses(self, model: Any, batch: dict[str, Any]) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(self._logits(model, batch), batch["label"], reduction="none")

    def _logits(self, model: Any, batch: dict[str, Any]) -> Any:
        import torch

        if not (self.faults and torch.is_grad_enabled()):
            return model(batch["image"])
        _strike(self, "forward")
        time.sleep(_HERE.slow_s)
        hidden = model[:2](batch["image"])
        if hidden.requires_grad:
            hidden.register_hook(lambda _: _strike(self, "backward"))
        return model[2:](hidden)


@dataclass
class _Place:
    """Where this process is in its work. It may serve one run after another."""

    task: Any = None
    rank: int = -1
    step: int = -1
    view: int = 0
    hooked: bool = False
    slow_s: float = 0.0
    blocked: threading.Event = field(default_factory=threading.Event)


_HERE = _Place()


def _hook() -> None:
    """Learn where this process is: from the loop, the optimizer and what a view begins with."""
    if _HERE.hooked:
        return
    _HERE.hooked = True
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    from shoal.data.reader import SliceReader
    from shoal.worker import life, loop

    def before(where: Any, name: str, phase: Phase | None, place: bool = False) -> None:
        original = getattr(where, name)

        def hooked(*args: Any, **kwargs: Any) -> Any:
            if place:
                _enter(args)
            if phase is not None:
                _strike(_HERE.task, phase)
            return original(*args, **kwargs)

        setattr(where, name, hooked)

    before(loop.Loop, "_accumulate", None, place=True)  # `loss` itself strikes in the forward pass
    before(loop.Loop, "_evaluate", "evaluate")
    before(loop.Loop, "_copy", "snapshot")
    before(SliceReader, "read", "read")
    before(life.Life, "_enter", "forming", place=True)
    before(life, "take_state_from_peers", "state")
    register_optimizer_step_pre_hook(lambda *_: _strike(_HERE.task, "update"))
    register_optimizer_step_post_hook(lambda *_: _strike(_HERE.task, "updated"))
    assert torch is not None


def _enter(args: tuple[Any, ...]) -> None:
    """`Loop._accumulate(self, work)` or `Life._enter(self, ...)`: both know the order; the first also the step."""
    order = args[0].order
    _HERE.task = args[0].job.task if hasattr(args[0], "job") else args[0]._job.task
    _HERE.rank, _HERE.view = order.view.rank(order.member), order.view.number
    _HERE.step = args[1].lease.step if hasattr(args[1], "lease") else order.first_step


def _strike(task: Any, phase: Phase) -> None:
    for fault in getattr(task, "faults", ()):
        if (fault.phase, fault.rank) != (phase, _HERE.rank):
            continue
        if _is_due(fault, phase):
            try:
                fault.mark(task.folder).touch(exist_ok=False)
            except FileExistsError:
                continue
            _wait_for(fault.after)
            _happen(fault.how)


def _is_due(fault: Fault, phase: Phase) -> bool:
    if phase in ("forming", "state"):
        return _HERE.view > 1
    # Samples are fetched ahead, for several steps at a time: not in every step.
    return _HERE.step >= fault.step if phase == "read" else _HERE.step == fault.step


def _wait_for(file: str) -> None:
    deadline = time.monotonic() + 60
    while file and not Path(file).exists():
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.02)


def _happen(how: How) -> None:
    if how in ("SIGKILL", "SIGSTOP"):
        os.kill(os.getpid(), getattr(signal, how))
    elif how == "raise":
        raise ZeroDivisionError("scripted: the user's code fails")
    elif how == "hold":
        ctypes.PyDLL(None).sleep(3600)  # a PyDLL call keeps the interpreter's lock
    elif how == "block":
        _HERE.blocked.wait()
    elif how == "cut":
        from shoal.worker.group import cut_group

        cut_group(_HERE.view)
    elif how == "slow":
        _HERE.slow_s = SLOW_S
    elif how == "node":
        _kill_node()


def _kill_node() -> None:
    """As if the machine had lost its power: first who could still tell, then everybody, this process at the end."""
    import psutil

    raylet = psutil.Process(os.getppid())
    assert "raylet" in raylet.name(), raylet
    others = [p for p in raylet.children(recursive=True) if p.pid != os.getpid()]
    for process in (raylet, *others):
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)
