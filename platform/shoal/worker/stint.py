"""The time for which a worker serves one run, and all that it has for it. Afterwards nothing of it is left."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal import logs
from shoal.errors import WorkerLost
from shoal.job import Job
from shoal.membership.messages import Told, ViewEnd, ViewOrder
from shoal.worker.outfit import Links, Outfit, WorkerFacts

_log = logging.getLogger(__name__)

ENDS_KEPT = 8
"""How many views back a worker can tell a restarted coordinator what it did there."""


@dataclass(slots=True)
class Stint:
    """Shared by the computing thread and those that answer others."""

    outfit: Outfit
    job: Job
    estate: Any
    """`worker.life.Estate`."""
    store: Any
    """The rendezvous of this stint (`worker.rendezvous`): with its own port, so that nobody from another run meets
    here."""
    facts: WorkerFacts
    order: ViewOrder | None = None
    life: Any = None
    _cuts: set[int] = field(default_factory=set)
    _ends: dict[int, ViewEnd | Exception] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    over: threading.Event = field(default_factory=threading.Event)
    _closing: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def live(self, order: ViewOrder, links: Links) -> ViewEnd:
        """Take part in a view; see `Worker.run_view`."""
        from shoal.worker.life import Life

        self.order = order
        logs.note(view=order.view.number, step=order.first_step - 1)
        _log.info(
            "enters view %d of %d members as rank %d", order.view.number, order.view.size, order.view.rank(order.member)
        )
        self.life = Life(order, links, self.outfit, self.job, self.estate, partial(self.cut, order.view.number))
        if self.over.is_set():
            self.cut(order.view.number)
        try:
            end: ViewEnd | Exception = self.life.live(self.store, self._was_cut)
        except Exception as error:  # noqa: BLE001 - kept for a coordinator that asks later, and raised all the same
            end = error
        _tell(end)
        with self._changed:
            self._ends = dict(list(self._ends.items())[1 - ENDS_KEPT :]) | {order.view.number: end}
            self._changed.notify_all()
        if isinstance(end, Exception):
            raise end
        return end

    def cut(self, view: int) -> None:
        """The view is over: make whatever waits for its members fail at once. From any thread."""
        from shoal.worker.group import cut_group

        with self._closing:
            if self._closed:
                return  # a late word: it would hit the next run's view of that number
            self._cuts.add(view)
            life = self.life
            if life is not None and life.order.view.number == view:
                life.cut()
            cut_group(view)

    def _was_cut(self, view: int) -> bool:
        return view in self._cuts

    @property
    def told(self) -> Told:
        """What it was told in its last view."""
        return self.life.told if self.life is not None else Told()

    @property
    def ends(self) -> tuple[ViewEnd, ...]:
        """How its last views ended, as far as it came out of them well."""
        return tuple(e for e in self._ends.values() if isinstance(e, ViewEnd))

    def end_of(self, view: int) -> ViewEnd:
        """How `view` ended here; waits until it has. Raises what it raised, WorkerLost if the stint ends first."""
        with self._changed:
            self._changed.wait_for(lambda: view in self._ends or self.over.is_set())
            end = self._ends.get(view) or WorkerLost(f"worker {self.outfit.member} has left the run")
        if isinstance(end, Exception):
            raise end
        return end

    def finish(self) -> None:
        """From any thread: nothing more is wanted of this worker. A view that it is still in is cut."""
        self.over.set()
        with self._changed:
            self._changed.notify_all()
        order = self.order
        if order is not None and order.view.number not in self._ends:
            self.cut(order.view.number)

    def close(self) -> None:
        """On the computing thread: let go of everything."""
        from shoal.worker.group import forget_views

        self.finish()
        with self._closing:
            self._closed = True
            forget_views()
        self.store.close()
        self.estate.snapshots.clear()
        self.life = self.estate = self.store = None


def _tell(end: ViewEnd | Exception) -> None:
    """How a view ended here, in the log."""
    if isinstance(end, Exception):
        _log.error("the view ended with an error: %s", end, exc_info=end)
        return
    logs.note(step=end.step)
    if end.broken is not None:
        _log.warning("the view broke: %s", end.broken)
    else:
        _log.info("leaves the view")
