"""The sum of a vector over all virtual shards, bit for bit the same however they are divided among members.

What a ring all-reduce adds, and in which order, depends on the number of members. Here each member owns a chunk of the
vector, receives that chunk of every subtree's sum from whoever holds it, adds them in the order of the tree
(`shoal.engines.tree`), and sends the result to those who want it. Addition is element by element, so where the chunks
are cut does not matter. With aligned ranges (one subtree per member) this moves as many bytes as a ring does.

The sum of squares, for the norm, is taken per block of fixed length and fixed place, by halving: only products and
pairwise additions of whole vectors, which round alike in every kernel, on every device, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist

from shoal.engines.flat import BLOCK
from shoal.engines.tree import Node, cover, total

PIECE = 128 * BLOCK
"""Elements that are added while the next ones are on their way: 2 MB, which stay in the processor's cache."""

Range = tuple[int, int]
"""Elements [start, stop) of the vector."""


class TreeReduction:
    """The division of labour in a view of two or more. `wants[r]`: what member r needs of the result, no part twice."""

    def __init__(
        self, rank: int, bounds: Sequence[int], elements: int, wants: Sequence[Sequence[Range]], device: torch.device
    ) -> None:
        self._rank, self._size = rank, len(bounds) - 1
        self._root: Node = (0, bounds[-1])
        self._covers = [cover(low, high, self._root) for low, high in pairwise(bounds)]
        blocks = elements // BLOCK
        cuts = [r * blocks // self._size * BLOCK for r in range(self._size + 1)]
        self._chunks: list[Range] = list(pairwise(cuts))
        self._parcels = [[_overlap(chunk, wanted) for wanted in wants] for chunk in self._chunks]
        mine = self.chunk_length(rank)
        self._scratch = {
            node: torch.empty(mine, dtype=torch.float32, device=device)
            for peer in self._others()
            for node in self._covers[peer]
        }

    def chunk_length(self, member: int) -> int:
        """Elements that `member` adds up; a multiple of BLOCK."""
        start, stop = self._chunks[member]
        return stop - start

    def run(self, sums: Mapping[Node, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """Add up everybody's subtrees (collective): `out` gets what this member wants of the result.

        `sums`: this member's subtrees, each a whole vector; their contents are lost. Returns the sums of squares of the
        blocks of this member's chunk. The elements of `out` that it does not want are undefined.
        """
        start, stop = self._chunks[self._rank]
        pieces = -(-max(b - a for a, b in self._chunks) // PIECE)
        flights = [self._post(sums, k) for k in range(pieces)]
        squares = []
        for (a, b), works in zip(_split(start, stop, pieces), flights, strict=True):
            for work in works:
                work.wait()
            if a < b:
                self._add(sums, a, b, out[a:b])
                squares.append(block_sums(out[a:b]))
        self._deliver(out)
        return torch.cat(squares) if squares else out.new_empty(0)

    def _others(self) -> list[int]:
        """The other members, each beginning with its neighbour, so that not all turn to the same one first."""
        return [(self._rank + i) % self._size for i in range(1, self._size)]

    def _post(self, sums: Mapping[Node, torch.Tensor], k: int) -> list[dist.Work]:
        """Start to send piece `k` of every chunk to its owner, and to receive that of this member's chunk."""
        start, stop = self._chunks[self._rank]
        mine = _piece(start, stop, k)
        swaps = []
        for peer in self._others():
            a, b = _piece(*self._chunks[peer], k)
            if a < b:
                swaps += [dist.P2POp(dist.isend, sums[node][a:b], peer) for node in self._covers[self._rank]]
            if mine[0] < mine[1]:
                here = slice(mine[0] - start, mine[1] - start)
                swaps += [dist.P2POp(dist.irecv, self._scratch[node][here], peer) for node in self._covers[peer]]
        return dist.batch_isend_irecv(swaps) if swaps else []

    def _add(self, sums: Mapping[Node, torch.Tensor], a: int, b: int, out: torch.Tensor) -> None:
        start = self._chunks[self._rank][0]
        parts = {node: vector[a:b] for node, vector in sums.items()}
        parts.update({node: vector[a - start : b - start] for node, vector in self._scratch.items()})
        low, high = self._root
        middle = (low + high) // 2
        left, right = (total(parts, half, torch.Tensor.add_) for half in ((low, middle), (middle, high)))
        torch.add(left, right, out=out)

    def _deliver(self, out: torch.Tensor) -> None:
        """Each owner's results go to those who want them."""
        swaps, arriving = [], []
        for peer in self._others():
            if there := self._parcels[self._rank][peer]:
                parts = [out[a:b] for a, b in there]
                swaps.append(dist.P2POp(dist.isend, parts[0] if len(parts) == 1 else torch.cat(parts), peer))
            if here := self._parcels[peer][self._rank]:
                parts = [out[a:b] for a, b in here]
                packed = parts[0] if len(parts) == 1 else out.new_empty(sum(b - a for a, b in here))
                swaps.append(dist.P2POp(dist.irecv, packed, peer))
                arriving.append((packed, parts))
        for work in dist.batch_isend_irecv(swaps) if swaps else []:
            work.wait()
        for packed, parts in arriving:
            if len(parts) > 1:
                for part, values in zip(parts, packed.split([p.numel() for p in parts]), strict=True):
                    part.copy_(values)


def block_sums(vector: torch.Tensor) -> torch.Tensor:
    """Sum of squares of each BLOCK elements. [blocks * BLOCK] -> [blocks]"""
    rows = vector.view(-1, BLOCK)
    return halve(rows * rows)


def halve(values: torch.Tensor) -> torch.Tensor:
    """The sum over the last dimension, whose length is a power of two: the second half is added to the first until one
    column is left. Works in place. [..., n] -> [...]"""
    width = values.shape[-1]
    while width > 1:
        width //= 2
        values = values[..., :width].add_(values[..., width : 2 * width])
    return values[..., 0]


def _overlap(chunk: Range, wanted: Sequence[Range]) -> list[Range]:
    """What lies in `chunk`, adjoining ranges joined."""
    out: list[Range] = []
    for a, b in wanted:
        a, b = max(a, chunk[0]), min(b, chunk[1])
        if a < b:
            if out and out[-1][1] == a:
                out[-1] = (out[-1][0], b)
            else:
                out.append((a, b))
    return out


def _piece(start: int, stop: int, k: int) -> Range:
    return min(start + k * PIECE, stop), min(start + (k + 1) * PIECE, stop)


def _split(start: int, stop: int, pieces: int) -> Iterator[Range]:
    return (_piece(start, stop, k) for k in range(pieces))
