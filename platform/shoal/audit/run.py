"""`shoal audit`: one run, from its ledger and its data, whatever state it is in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shoal.audit.chain import Chain, Fault
from shoal.audit.content import Content, Reading, compare
from shoal.audit.epochs import Epochs, check_order, epochs_of
from shoal.data.order import Order
from shoal.data.sources import resolve
from shoal.errors import DataError, ShoalError
from shoal.job import Data, Job
from shoal.job.steps import OPEN, positions_of, total_steps
from shoal.job.store import load_job
from shoal.positions import Positions
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import scan

ALL = (1, 1 << 62)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What was found out about one run."""

    run_id: str
    chain: Chain
    total_steps: int | None
    forked_from: str | None
    """The checkpoint of another run that this one began with."""
    epochs: Epochs | None
    orders: int
    """Epochs of which the data order was proved to be a permutation."""
    content: Content | None
    """None: the samples were not read again."""
    unproven: str
    """Why something that was asked for could not be looked at; "" if everything was."""
    faults: tuple[Fault, ...]
    seconds: float

    @property
    def clean(self) -> bool:
        """Everything that was asked for was proved."""
        return not self.faults and not self.unproven


def audit_run(
    folder: RunFolder,
    *,
    within: tuple[int, int] = ALL,
    content: bool = True,
    progress: Callable[[int, int], None] = lambda done, all: None,
) -> Audit:
    """Prove that every sample was used exactly once, or name what is missing or doubled.

    The ledger is looked at as a whole; the samples are read again only for the steps `within` (first, last), and not at
    all without `content`. Raises ConfigError if there is no such run, ShoalError if the ledger is damaged.
    """
    begun, said = time.perf_counter(), folder.read()
    values = _values(folder)
    total, spans = said.get("total_steps"), said.get("positions")
    forked_from = said.get("forked_from")
    positions = Positions.from_json(spans, total or OPEN) if spans else None
    chain = Chain(positions, forked=bool(forked_from)).add(e for e, _ in scan(folder.ledger))
    epochs = epochs_of(chain) if _each_once(values) else None
    faults = chain.faults(total) + list(epochs.faults() if epochs else ())
    compared, orders, unproven = None, 0, ""
    if chain.epoch_samples and chain.first <= chain.last and within[0] <= chain.last:
        try:
            job, reading = _data(folder, chain, total)
            for order, asked in _epochs(chain, reading, within) if _permutes(job.data) else ():
                faults += check_order(order, asked)
                orders += len(asked)
            if content:
                shards = job.batch.virtual_shards
                compared = compare(chain, reading, shards=shards, within=within, progress=progress)
                faults += compared.faults
        except ShoalError as error:
            # The data, or the recipe that names it, need not be there any more: what the ledger says still counts.
            unproven = str(error) if content else ""
    return Audit(
        run_id=folder.run_id, chain=chain, total_steps=total, forked_from=forked_from, epochs=epochs,
        orders=orders, content=compared, unproven=unproven, faults=tuple(faults), seconds=time.perf_counter() - begun,
    )  # fmt: skip


def _data(folder: RunFolder, chain: Chain, all_steps: int | None) -> tuple[Job, Reading]:
    """The job and its training data. Raises DataError if these are not the data that the run was trained on."""
    job = load_job(folder)
    train = resolve(job.data, folder.root, tuple(job.task.columns)).train
    then = str(chain.start.get("data_digest") or train.digest)
    if (then, chain.epoch_samples) != (train.digest, train.samples):
        raise DataError(
            f"{train.uri} is not what the run was trained on: it has {train.samples} samples (digest "
            f"{train.digest[:12]}), then it had {chain.epoch_samples} (digest {then[:12]}); bring the old data back"
        )
    mixture, orders = train.ordered(job, positions_of(job, all_steps or total_steps(job, train.samples)))
    return job, Reading(train.catalogs, orders, mixture)


def _epochs(chain: Chain, reading: Reading, within: tuple[int, int]) -> Iterator[tuple[Order, range]]:
    """Each source's order, and its epochs that the steps `within` touch."""
    first, last = max(within[0], chain.first), min(within[1], chain.last)
    low, high = chain.range_of(first)[0], chain.range_of(last)[1]
    spans = [(low, high)] if reading.mixture is None else reading.mixture.ranges(low, high)
    for order, (begin, end) in zip(reading.orders, spans, strict=True):
        if begin < end:
            yield order, range(begin // order.samples + 1, (end - 1) // order.samples + 2)


def _each_once(values: dict[str, Any]) -> bool:
    """Whether each epoch holds every sample once: not where sources are mixed, or samples drawn or held back."""
    usual = {"data.sources": "", "data.replacement": "false"}
    paced = any(name.startswith("data.curriculum.") for name in values)
    return not paced and all(values.get(name, text) == text for name, text in usual.items())


def _permutes(data: Data) -> bool:
    """Whether each source's samples come once per epoch of that source."""
    return data.curriculum is None and not data.replacement


def _values(folder: RunFolder) -> dict[str, Any]:
    """The job's values as `job.json` shows them; none if it cannot be read."""
    try:
        return dict(json.loads(folder.job.read_text())["values"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
