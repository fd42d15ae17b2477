"""Moves a training state between the members of a view: from whoever holds it to whoever needs it, peer to peer.

State travels as host tensors, so over gloo also where the view computes on GPUs.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from shoal.errors import CheckpointError
from shoal.membership.messages import InMemory
from shoal.membership.view import MemberId, View
from shoal.state.exchange_plan import PACKED, Move, messages, plan_moves
from shoal.state.layout import Extent, Shard, offsets

_ROUNDS_IN_FLIGHT = 8
"""Messages to and from each peer that are under way at a time. Bounds the memory beside the state itself."""
_DATA = 3
"""Tag of the first message of state between two members; 0 to 2 are of what precedes it."""
_FIRST = 1 << 16
"""Bytes of a member's first word to each other member; a model of a few hundred parameters needs no second one."""


class StateHolder(Protocol):
    """The part of an engine that this module needs; see `shoal.engines.protocol.Engine`."""

    @property
    def keeps_state(self) -> bool: ...

    def offered(self, part: int, parts: int) -> Shard: ...

    def wanted(self) -> dict[str, tuple[Extent, ...]]: ...

    def write_state(
        self,
        read: Callable[[str, Sequence[Extent]], torch.Tensor],
        scalars: dict[str, Any],
        buffers: dict[str, torch.Tensor],
        *,
        shared: bool = True,
    ) -> None: ...


def take_state_from_peers(
    engine: StateHolder, source: InMemory, me: MemberId, view: View, held: Callable[[MemberId, int], Shard]
) -> None:
    """Make the live state of every member of `view` that of `source.step` (collective; after `engine.form`).

    `held(owner, step)` gives the host snapshot that this member keeps of `owner`, or raises CheckpointError; it is
    called for sharded engines only. A replicated engine that is up to date keeps its live state and only gives; if all
    do, nothing is sent. Raises the same CheckpointError on every member if the state cannot be put together.
    """
    givers = [member for member, _ in source.gives]
    gives = me in givers
    if engine.keeps_state and set(givers) >= set(view.members):
        return
    offers: list[Shard] = []
    problem = None
    try:
        if engine.keeps_state and gives:
            offers = [engine.offered(givers.index(me), len(givers))]
        elif gives:
            offers = [held(owner, source.step) for owner in dict(source.gives)[me]]
    except CheckpointError as error:
        problem = f"member {me}: {error}"
    takes = not (engine.keeps_state and gives)
    exchange = Exchange(offers, engine.wanted() if takes else {}, problem)
    if takes:
        engine.write_state(exchange.read, exchange.scalars, exchange.buffers, shared=False)


@dataclass(frozen=True, slots=True)
class _Notice:
    """What a member tells all others before anything is sent. It travels as JSON, as what a manifest says does: bytes
    from the network are never unpickled."""

    problem: str | None
    offers: list[list[tuple[str, int, int]]]
    wants: dict[str, list[tuple[str, int, int]]]
    keys: list[list[str]]
    scalars: list[dict[str, Any]]
    buffers: list[tuple[str, str, list[int]]]
    """Name, type, shape."""

    def to_bytes(self) -> bytes:
        """For the others."""
        return json.dumps([getattr(self, name) for name in self.__slots__]).encode()

    @classmethod
    def from_bytes(cls, said: bytes) -> _Notice:
        """Inverse of `to_bytes`."""
        return cls(*json.loads(said))


class Exchange:
    """One exchange between all members of the default process group (collective; over when the constructor returns).

    This member offers `offers` and gets the elements `wants` (key -> extents), which `read` then gives; `scalars` and
    `buffers` are those of the first giver. Takes host memory for what is wanted, once. Raises the same CheckpointError
    on every member if an element or a key is nowhere, if givers disagree in their scalars, or if any member has a
    `problem`. When a peer is lost it raises what torch raises.
    """

    def __init__(
        self, offers: Sequence[Shard], wants: Mapping[str, Sequence[Extent]], problem: str | None = None
    ) -> None:
        notices = _tell_all(_notice(offers, wants, problem))
        plans = _plans(notices)
        first = next((rank for rank, n in enumerate(notices) if n.offers), None)
        self.scalars: dict[str, Any] = dict(notices[first].scalars[0]) if first is not None else {}
        self.buffers = _share_buffers(offers, notices, first) if first is not None else {}
        self._places = {key: _places(extents) for key, extents in wants.items()}
        self._packed = {
            key: torch.empty(sum(e.count for e in extents), dtype=torch.float32) for key, extents in wants.items()
        }
        _move(plans, offers, self._packed)

    def read(self, key: str, extents: Sequence[Extent]) -> torch.Tensor:
        """The extents' elements one after another, 1-D fp32; not copied if they lie together. An engine's `ReadState`.

        Only what was wanted can be read.
        """
        runs: list[tuple[int, int]] = []
        for extent in extents:
            at = self._find(key, extent)
            if runs and runs[-1][1] == at:
                runs[-1] = (runs[-1][0], at + extent.count)
            else:
                runs.append((at, at + extent.count))
        parts = [self._packed[key][a:b] for a, b in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)

    def _find(self, key: str, extent: Extent) -> int:
        known = self._places[key][extent.name]
        start, stop, at = known[bisect_right(known, extent.start, key=lambda place: place[0]) - 1]
        assert start <= extent.start <= extent.stop <= stop, f"{key} of {extent} was not asked for"
        return at + extent.start - start


def _places(extents: Sequence[Extent]) -> dict[str, list[tuple[int, int, int]]]:
    """name -> (start, stop, offset of start in the packed tensor), in order."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for extent, at in zip(extents, offsets(extents), strict=True):
        found.setdefault(extent.name, []).append((extent.start, extent.stop, at))
    return {name: sorted(places) for name, places in found.items()}


# What everyone must know -------------------------------------------------------------------------------------------


def _notice(offers: Sequence[Shard], wants: Mapping[str, Sequence[Extent]], problem: str | None) -> _Notice:
    return _Notice(
        problem=problem,
        offers=[_rows(shard.extents) for shard in offers],
        wants={key: _rows(extents) for key, extents in wants.items()},
        keys=[list(shard.tensors) for shard in offers],
        scalars=[shard.scalars for shard in offers],
        buffers=[(name, str(b.dtype).removeprefix("torch."), list(b.shape)) for name, b in offers[0].buffers.items()]
        if offers
        else [],
    )


def _rows(extents: Sequence[Extent]) -> list[tuple[str, int, int]]:
    return [(e.name, e.start, e.count) for e in extents]


def _tell_all(notice: _Notice) -> list[_Notice]:
    """Everyone's notice, by rank (collective). Raises what is wrong with them, on every member."""
    notices = _gather(notice)
    problems = [n.problem for n in notices if n.problem is not None]
    if problems:
        raise CheckpointError("; ".join(problems))
    said = [(rank, scalars) for rank, n in enumerate(notices) for scalars in n.scalars]
    for rank, scalars in said[1:]:
        if scalars != said[0][1]:
            raise CheckpointError(
                f"the members' parts are not of one state: rank {said[0][0]} has {said[0][1]}, rank {rank} has "
                f"{scalars}; go on from the last durable checkpoint"
            )
    wanted = dict.fromkeys(key for n in notices for key in n.wants)
    for rank, n in enumerate(notices):
        for keys in n.keys:
            if lacking := [key for key in wanted if key not in keys]:
                raise CheckpointError(
                    f"the state that rank {rank} has lacks {', '.join(lacking)}, it has {', '.join(keys)}: it was made "
                    f"with another optimizer; go on with that optimizer, or start a new run"
                )
    return notices


def _gather(notice: _Notice) -> list[_Notice]:
    """Everyone's notice, by rank (collective). Straight from each to each: `all_gather_object` goes round in a ring,
    twice, and each hop waits for a process to get a core; on few cores that took as long as moving the state."""
    rank, size = dist.get_rank(), dist.get_world_size()
    said = notice.to_bytes()
    mine = np.frombuffer(said, np.uint8)
    first = np.zeros(_FIRST, np.uint8)
    first[:8] = np.frombuffer(len(mine).to_bytes(8, "little"), np.uint8)
    first[8 : 8 + len(mine)] = mine[: _FIRST - 8]
    begun = _swap(1, first, dict.fromkeys(_others(rank, size), _FIRST))
    lengths = {peer: int.from_bytes(got[:8].tobytes(), "little") for peer, got in begun.items()}
    rest = _swap(2, mine[_FIRST - 8 :].copy(), {peer: n - (_FIRST - 8) for peer, n in lengths.items()})
    told = {rank: _Notice.from_bytes(said)}  # as the others see it
    for peer, length in lengths.items():
        told[peer] = _Notice.from_bytes(np.concatenate([begun[peer][8:], rest[peer]])[:length].tobytes())
    return [told[peer] for peer in range(size)]


def _swap(tag: int, mine: np.ndarray, lengths: Mapping[int, int]) -> dict[int, np.ndarray]:
    """Give `mine` to all others; what they give, so many bytes each. Nothing travels that has no bytes."""
    got = {peer: np.empty(max(0, n), np.uint8) for peer, n in lengths.items()}
    flights = [_receive(peer, tag, [part], []) for peer, part in got.items() if len(part)]
    _land([*flights, *(_send(peer, tag, [mine], []) for peer in lengths if len(mine))], [])
    return got


def _plans(notices: Sequence[_Notice]) -> dict[str, list[Move]]:
    """key -> moves. Keys that everyone wants in the same way share one plan."""
    offers = [[[Extent(*row) for row in rows] for rows in n.offers] for n in notices]
    made: list[tuple[list[list[tuple[str, int, int]]], list[Move]]] = []
    plans: dict[str, list[Move]] = {}
    for key in dict.fromkeys(key for n in notices for key in n.wants):
        wants = [n.wants.get(key, []) for n in notices]
        known = next((moves for rows, moves in made if rows == wants), None)
        if known is None:
            known = plan_moves(offers, [[Extent(*row) for row in rows] for rows in wants])
            made.append((wants, known))
        plans[key] = known
    return plans


# Moving --------------------------------------------------------------------------------------------------------------


def _move(plans: Mapping[str, Sequence[Move]], offers: Sequence[Shard], packed: Mapping[str, torch.Tensor]) -> None:
    """Carry out the plans (collective): copy what is here, send and receive the rest."""
    rank, size = dist.get_rank(), dist.get_world_size()
    pairs: dict[tuple[int, int], dict[str, list[Move]]] = {}
    for key, moves in plans.items():
        for move in moves:
            if rank in (move.giver, move.taker):
                pairs.setdefault((move.giver, move.taker), {}).setdefault(key, []).append(move)
    held = [{key: tensor.numpy() for key, tensor in shard.tensors.items()} for shard in offers]
    place = {key: tensor.numpy() for key, tensor in packed.items()}
    # Each begins with another peer, so that not all send to the same one at a time.
    out = [(peer, messages(pairs[rank, peer])) for peer in _others(rank, size) if (rank, peer) in pairs]
    into = [(peer, messages(pairs[peer, rank])) for peer in _others(rank, size) if (peer, rank) in pairs]
    flying: deque[list[_Flight]] = deque()
    pool: list[torch.Tensor] = []
    for i in range(max((len(m) for _, m in (*out, *into)), default=0)):
        # All post round i before anyone waits for round i, and wait for the oldest first: no two can wait crosswise.
        arrivals = [
            _receive(peer, _DATA + i, [place[p.key][p.target : p.target + p.size] for p in m[i]], pool)
            for peer, m in into
            if i < len(m)
        ]
        departures = [
            _send(peer, _DATA + i, [held[p.shard][p.key][p.source : p.source + p.size] for p in m[i]], pool)
            for peer, m in out
            if i < len(m)
        ]
        flying.append(arrivals + departures)
        if len(flying) >= _ROUNDS_IN_FLIGHT:
            _land(flying.popleft(), pool)
    for key, moves in pairs.get((rank, rank), {}).items():
        for move in moves:
            here = held[move.shard][key][move.source : move.source + move.size]
            place[key][move.target : move.target + move.size] = here
    while flying:
        _land(flying.popleft(), pool)


def _others(rank: int, size: int) -> list[int]:
    return [(rank + i) % size for i in range(1, size)]


# Many small pieces are cut and copied by NumPy, because each costs a tenth of what it costs in torch.


@dataclass(slots=True)
class _Flight:
    """A message on its way, and where its parts go when it has arrived."""

    work: Any
    tensor: torch.Tensor
    """Kept until the work is done: the transport reads or writes it."""
    unpack: Sequence[np.ndarray] = ()
    buffer: torch.Tensor | None = None
    """What `tensor` is part of, to be used again."""


def _send(peer: int, tag: int, parts: list[np.ndarray], pool: list[torch.Tensor]) -> _Flight:
    if len(parts) == 1:
        tensor = torch.from_numpy(parts[0])
        return _Flight(dist.isend(tensor, peer, tag=tag), tensor)
    tensor, buffer = _borrow(parts, pool)
    np.concatenate(parts, out=tensor.numpy())
    return _Flight(dist.isend(tensor, peer, tag=tag), tensor, buffer=buffer)


def _receive(peer: int, tag: int, parts: list[np.ndarray], pool: list[torch.Tensor]) -> _Flight:
    if len(parts) == 1:
        tensor = torch.from_numpy(parts[0])
        return _Flight(dist.irecv(tensor, peer, tag=tag), tensor)
    tensor, buffer = _borrow(parts, pool)
    return _Flight(dist.irecv(tensor, peer, tag=tag), tensor, parts, buffer)


def _borrow(parts: list[np.ndarray], pool: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for these parts one after another, and the buffer that it is in."""
    buffer = pool.pop() if pool else torch.empty(PACKED, dtype=torch.float32)
    return buffer[: sum(part.size for part in parts)], buffer


def _land(flights: Sequence[_Flight], pool: list[torch.Tensor]) -> None:
    """Wait for messages, put what arrived where it belongs, give the buffers back."""
    for flight in flights:
        flight.work.wait()
        arrived, at = flight.tensor.numpy(), 0
        for part in flight.unpack:
            part[:] = arrived[at : at + part.size]
            at += part.size
        if flight.buffer is not None:
            pool.append(flight.buffer)


def _share_buffers(offers: Sequence[Shard], notices: Sequence[_Notice], first: int) -> dict[str, torch.Tensor]:
    """The buffers of rank `first`, on every member that takes anything (collective). One message of bytes each."""
    rank = dist.get_rank()
    takers = [r for r, n in enumerate(notices) if n.wants and r != first]
    if rank == first:
        out = dict(offers[0].buffers)
    else:
        out = {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, kind, shape in notices[first].buffers}
    parts = [buffer.contiguous().reshape(-1).view(torch.uint8) for buffer in out.values() if buffer.numel()]
    if parts and rank == first:
        flat = torch.cat(parts)
        _land([_Flight(dist.isend(flat, taker), flat) for taker in takers], [])
    elif parts and rank in takers:
        flat = torch.empty(sum(part.numel() for part in parts), dtype=torch.uint8)
        _land([_Flight(dist.irecv(flat, first), flat, [part.numpy() for part in parts])], [])
    return out
