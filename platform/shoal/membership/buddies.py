"""Who keeps the copies of whose snapshots. Pure."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from shoal.membership.view import MemberId


def buddies(
    members: Sequence[MemberId], nodes: Mapping[MemberId, str], leaving: Collection[MemberId] = ()
) -> dict[MemberId, MemberId]:
    """Who keeps the copy of whose snapshots: another member, on another node where possible, the load spread evenly.

    Members that are about to leave keep nobody's, unless there is no other. A member that is alone is not in the
    result. Of several who would do as well it is the next one in rank order.
    """
    where = [nodes.get(m) for m in members]
    going = set(leaving)
    kinds = [_Keepers(where, (i for i, m in enumerate(members) if (m in going) is leaves)) for leaves in (False, True)]
    keepers: dict[MemberId, MemberId] = {}
    for i, owner in enumerate(members):
        tries = ((keeping, elsewhere) for keeping in kinds for elsewhere in (True, False))
        found = next((j for keeping, elsewhere in tries if (j := keeping.take(i, elsewhere)) is not None), None)
        if found is not None:
            keepers[owner] = members[found]
    return keepers


class _Keepers:
    """Some members, by rank, ordered by how many copies each keeps: thousands find theirs without looking at all."""

    def __init__(self, where: Sequence[str | None], ranks: Iterable[int]) -> None:
        """`where`: the node of each rank of the view."""
        self._where = where
        first = list(ranks)
        self._by_load: dict[int, list[int]] = {0: first} if first else {}
        self._on: dict[int, Counter[str | None]] = {0: Counter(where[r] for r in first)}

    def take(self, owner: int, elsewhere: bool) -> int | None:
        """The one that keeps the copy of `owner` from now on, on another node if `elsewhere`; None: there is none."""
        for load in sorted(self._by_load):
            ranks, own = self._by_load[load], self._where[owner]
            if elsewhere and self._on[load][own] == len(ranks):
                continue
            first = bisect_right(ranks, owner)
            for rank in _ring(ranks, first):
                if rank != owner and not (elsewhere and self._where[rank] == own):
                    self._move(rank, load)
                    return rank
        return None

    def _move(self, rank: int, load: int) -> None:
        ranks = self._by_load[load]
        ranks.remove(rank)
        self._on[load][self._where[rank]] -= 1
        if not ranks:
            del self._by_load[load]
        insort(self._by_load.setdefault(load + 1, []), rank)
        self._on.setdefault(load + 1, Counter())[self._where[rank]] += 1


def _ring(ranks: Sequence[int], first: int) -> Iterable[int]:
    return (ranks[(first + i) % len(ranks)] for i in range(len(ranks)))
