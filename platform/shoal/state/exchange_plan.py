"""Who sends which elements of a state to whom. Pure arithmetic on extents: every member computes the same plan."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shoal.errors import CheckpointError
from shoal.state.layout import Extent, offsets

CHUNK = 1 << 20
"""Most elements in one message: 4 MB."""
PACKED = 1 << 18
"""Most elements in a message of several pieces: 1 MB. They are copied into and out of a buffer, which should stay in
the processor's cache."""
SOLO = 1 << 16
"""Elements from which on a piece travels alone, straight from memory to memory: at 256 KB the two copies cost what a
message costs."""


class Move(NamedTuple):
    """`size` elements from `source` on in shard `shard` of member `giver` become those from `target` on in what member
    `taker` wants. Members are ranks; both places are offsets into packed tensors."""

    giver: int
    shard: int
    source: int
    taker: int
    target: int
    size: int


class Piece(NamedTuple):
    """A part of a message: a move, or a part of one, of one key."""

    key: str
    shard: int
    source: int
    target: int
    size: int


class _Span(NamedTuple):
    """Elements [start, stop) of one parameter, and where they lie: (giver, shard, offset), each giver once."""

    start: int
    stop: int
    places: tuple[tuple[int, int, int], ...]


def plan_moves(offers: Sequence[Sequence[Sequence[Extent]]], wants: Sequence[Sequence[Extent]]) -> list[Move]:
    """How every member gets what it wants: `offers[m]` are the extents of each shard of member m, `wants[m]` those that
    it needs, in the order in which it packs them.

    Every wanted element comes from exactly one giver: the member itself if it can; otherwise those who have it give
    even parts. Neighbours at both ends are one move. Raises CheckpointError that names what nobody has.
    """
    held = _spans(offers)
    moves: list[Move] = []
    missing: list[Extent] = []
    for taker, extents in enumerate(wants):
        for extent, target in zip(extents, offsets(extents), strict=True):
            at, stop, shift = extent.start, extent.stop, target - extent.start
            spans = held.get(extent.name, [])
            for i in range(max(0, bisect_right(spans, at, key=_start) - 1), len(spans)):
                span = spans[i]
                if span.start >= stop:
                    break
                low, high = max(at, span.start), min(stop, span.stop)
                if low < high:
                    if at < low:
                        missing.append(Extent(extent.name, at, low - at))
                    _give(moves, span, low, high, taker, low + shift)
                    at = high
            if at < stop:
                missing.append(Extent(extent.name, at, stop - at))
    if missing:
        raise CheckpointError(_lacking(missing))
    return moves


def messages(
    moves: Mapping[str, Sequence[Move]], solo: int = SOLO, packed: int = PACKED, chunk: int = CHUNK
) -> list[list[Piece]]:
    """The moves of one giver to one taker, by key, as messages: pieces of less than `solo` elements together, at most
    `packed` elements of them; larger ones alone, at most `chunk` elements. Both ends compute the same."""
    out: list[list[Piece]] = []
    together: list[Piece] = []
    held = 0
    for key, of_key in moves.items():
        for move in of_key:
            if move.size >= solo:
                for at in range(0, move.size, chunk):
                    count = min(chunk, move.size - at)
                    out.append([Piece(key, move.shard, move.source + at, move.target + at, count)])
                continue
            if held + move.size > packed:
                out.append(together)
                together, held = [], 0
            together.append(Piece(key, move.shard, move.source, move.target, move.size))
            held += move.size
    return [*out, together] if together else out


def _spans(offers: Sequence[Sequence[Sequence[Extent]]]) -> dict[str, list[_Span]]:
    """name -> what is offered of it, cut wherever an offer begins or ends; in order."""
    found: dict[str, list[tuple[int, int, int, int, int]]] = {}
    for giver, shards in enumerate(offers):
        for shard, extents in enumerate(shards):
            for extent, at in zip(extents, offsets(extents), strict=True):
                if extent.count:
                    found.setdefault(extent.name, []).append((extent.start, extent.stop, giver, shard, at))
    return {name: _cut(pieces) for name, pieces in found.items()}


def _cut(pieces: list[tuple[int, int, int, int, int]]) -> list[_Span]:
    edges = sorted({edge for start, stop, *_ in pieces for edge in (start, stop)})
    places: list[dict[int, tuple[int, int, int]]] = [{} for _ in edges]
    for start, stop, giver, shard, at in pieces:
        i = bisect_right(edges, start) - 1
        while edges[i] < stop:
            places[i].setdefault(giver, (giver, shard, at + edges[i] - start))
            i += 1
    return [_Span(edges[i], edges[i + 1], tuple(here.values())) for i, here in enumerate(places) if here]


def _give(moves: list[Move], span: _Span, low: int, high: int, taker: int, target: int) -> None:
    """Elements [low, high) of a span for `taker`: its own if it has them, otherwise even parts of all who do."""
    places = span.places
    if len(places) > 1:
        places = tuple(p for p in places if p[0] == taker) or places
    count = high - low
    for i, (giver, shard, at) in enumerate(places):
        a, b = i * count // len(places), (i + 1) * count // len(places)
        if a == b:
            continue
        source = at + low - span.start + a
        last = moves[-1] if moves else None
        if (
            last is not None
            and last[:4] == (giver, shard, source - last.size, taker)
            and last.target + last.size == target + a
        ):
            moves[-1] = last._replace(size=last.size + b - a)
        else:
            moves.append(Move(giver, shard, source, taker, target + a, b - a))


def _start(span: _Span) -> int:
    return span.start


def _lacking(missing: Sequence[Extent]) -> str:
    first = list(dict.fromkeys(missing))
    named = ", ".join(f"{e.name}[{e.start}:{e.stop}]" for e in first[:3])
    more = f" and {len(first) - 3} more pieces" if len(first) > 3 else ""
    return (
        f"the state cannot be put together from the members' memory: nobody has {named}{more}, because too many "
        f"members were lost at once; go on from the last durable checkpoint"
    )
