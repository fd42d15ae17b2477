"""Members that do not reach each other cannot be in one view: who is left out. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from shoal.membership.view import MemberId


def cut_off(
    members: Sequence[MemberId], unseen: Mapping[MemberId, Collection[MemberId]]
) -> dict[MemberId, tuple[MemberId, ...]]:
    """Who must go so that everybody who stays reaches everybody, and from whom each of them is cut off.

    `members` in rank order; `unseen`: member -> whom it does not reach; one direction is enough. Again and again the
    one goes who is cut off from most of those that are left, of several the last by rank: where a network falls in two,
    the larger part stays. (Where it falls in many, more could stay now and then; to find that takes too long.)
    """
    apart = {m: [o for o in members if o != m and (o in unseen.get(m, ()) or m in unseen.get(o, ()))] for m in members}
    left, gone = {m: set(others) for m, others in apart.items()}, set()
    while any(left.values()):
        worst = max(left, key=lambda m: (len(left[m]), members.index(m)))
        gone.add(worst)
        for other in left.pop(worst):
            left[other].discard(worst)
    return {m: tuple(apart[m]) for m in members if m in gone}
