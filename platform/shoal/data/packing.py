"""Packing: documents of tokens into blocks of equal length. Pure; NumPy only.

Blocks depend on the documents and their order alone, never on how these were divided among calls.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

BYTE_VOCABULARY = 256
SEPARATOR = 0
"""Byte that ends every document of byte-level text: it does not occur in text."""

PADDING = 0
"""In `segments`: no token of any document. The documents of a block are numbered from 1."""

OPEN_BLOCKS = 1024
"""Blocks that `BestFit` keeps open, if they are short."""
OPEN_TOKENS = 4 << 20
"""Tokens in all blocks that `BestFit` keeps open, if they are long."""

_LEAST_OPEN = 16

Blocks = tuple[np.ndarray, np.ndarray | None]
"""Tokens [m, block] and, where borders between documents are kept, segments [m, block]: to which document of the block
each token belongs, from 1; PADDING where there is none."""


class Packer(Protocol):
    """Makes blocks of a stream of documents."""

    truncated: int
    """Documents so far of which no single block holds the whole."""

    @property
    def waiting(self) -> int:
        """Tokens that were given and are in no block yet."""

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> Blocks:
        """The blocks that are full after more documents: `tokens` [n], one after another, and their `lengths` [d]."""

    def close(self) -> Blocks:
        """The last blocks. What is `waiting` after that is dropped."""


@dataclass(slots=True)
class Joined:
    """Documents one after another, cut wherever a block is full: no padding, and less than one block is dropped."""

    block: int
    dtype: np.dtype
    borders: bool
    """Whether to say which document each token belongs to."""
    truncated: int = 0
    _tokens: np.ndarray = field(init=False)
    _first: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._tokens, self._first = np.empty(0, self.dtype), np.empty(0, bool)

    @property
    def waiting(self) -> int:
        return len(self._tokens)

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> Blocks:
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        at = len(self._tokens)
        self.truncated += int(np.count_nonzero((at + starts) // self.block != (at + ends - 1) // self.block))
        blocks, self._tokens = pack(self._tokens, tokens, self.block)
        if not self.borders:
            return blocks, None
        first = np.zeros(len(tokens), bool)
        first[starts] = True
        firsts, self._first = pack(self._first, first, self.block)
        firsts[:, 0] = True
        return blocks, np.cumsum(firsts, axis=1, dtype=segment_dtype(self.block))

    def close(self) -> Blocks:
        none = np.empty((0, self.block), self.dtype)
        return none, none.astype(segment_dtype(self.block)) if self.borders else None


class BestFit:
    """Documents that fit into a block are not cut; blocks are padded where nothing fits.

    Best-fit packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling") over a stream: a document goes
    into the open block that has the least room for it. Longer ones give full blocks first. Where the paper sorts all
    documents, this keeps a bounded number of blocks open; if none has room and there may be no more, the fullest is
    padded and given out.
    """

    def __init__(self, block: int, end: int, dtype: np.dtype) -> None:
        """`end` is the token that fills what is left of a block."""
        places = max(_LEAST_OPEN, min(OPEN_BLOCKS, OPEN_TOKENS // block))
        self.truncated = 0
        self._block, self._end = block, end
        self._tokens = np.full((places, block), end, dtype)
        self._segments = np.full((places, block), PADDING, segment_dtype(block))
        self._vacant = list(range(places))
        self._open: list[tuple[int, int, int]] = []
        """(room, number, place) of every open block, sorted. Numbers count blocks as they are opened."""
        self._opened = 0
        self._done: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def waiting(self) -> int:
        return len(self._open) * self._block - sum(room for room, _, _ in self._open)

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> Blocks:
        start = 0
        for length in lengths.tolist():
            stop = start + length
            if length > self._block:
                self.truncated += 1
                full = tokens[start : start + length // self._block * self._block].reshape(-1, self._block)
                self._done.append((full, np.ones(full.shape, self._segments.dtype)))
                start += full.size
            if start < stop:
                self._put(tokens[start:stop])
            start = stop
        return self._take()

    def close(self) -> Blocks:
        for _, _, place in sorted(self._open, key=lambda entry: entry[1]):
            self._finish(place)
        self._open.clear()
        return self._take()

    def _put(self, piece: np.ndarray) -> None:
        at = bisect_left(self._open, (len(piece),))
        if at < len(self._open):
            room, number, place = self._open.pop(at)
        else:
            if not self._vacant:
                self._finish(self._open.pop(0)[2])
            room, number, place = self._block, self._opened, self._vacant.pop()
            self._opened += 1
        begin = self._block - room
        before = self._segments[place, begin - 1] if begin else PADDING
        self._tokens[place, begin : begin + len(piece)] = piece
        self._segments[place, begin : begin + len(piece)] = before + 1
        if room > len(piece):
            insort(self._open, (room - len(piece), number, place))
        else:
            self._finish(place)

    def _finish(self, place: int) -> None:
        self._done.append((self._tokens[place : place + 1].copy(), self._segments[place : place + 1].copy()))
        self._tokens[place], self._segments[place] = self._end, PADDING
        self._vacant.append(place)

    def _take(self) -> Blocks:
        none = (self._tokens[:0], self._segments[:0])
        tokens, segments = zip(none, *self._done, strict=True)
        self._done.clear()
        return np.concatenate(tokens), np.concatenate(segments)


def pack(carried: np.ndarray, tokens: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut `carried` followed by `tokens` (both [n]) into blocks.

    Returns (blocks [m, block], what did not fill a block [< block]); the latter is `carried` of the next call, so only
    the end of the last document of a split is ever dropped.
    """
    stream = np.concatenate([carried, tokens]) if len(carried) else tokens
    full = len(stream) // block * block
    return stream[:full].reshape(-1, block), stream[full:].copy()


def real_tokens(tokens: np.ndarray, segments: np.ndarray | None) -> int:
    """How many of `tokens` (any shape) belong to a document; without segments all do."""
    return tokens.size if segments is None else int(np.count_nonzero(segments != PADDING))


def byte_tokens(text: bytes) -> np.ndarray:
    """One document as uint8 tokens [len(text) + 1]: its bytes, then the separator."""
    return np.frombuffer(text + bytes([SEPARATOR]), dtype=np.uint8)


def token_dtype(vocabulary: int) -> np.dtype:
    """The smallest unsigned type that torch also has: uint8, uint16; else int32."""
    return np.dtype(np.uint8 if vocabulary <= 1 << 8 else np.uint16 if vocabulary <= 1 << 16 else np.int32)


def segment_dtype(block: int) -> np.dtype:
    """The type of `segments`: the smallest that numbers as many documents as a block has tokens."""
    return token_dtype(block + 1)
