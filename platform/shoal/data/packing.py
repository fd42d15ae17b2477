"""Packing: a stream of tokens cut into blocks of equal length. Pure; NumPy only."""

from __future__ import annotations

import numpy as np

BYTE_VOCABULARY = 256
SEPARATOR = 0
"""Byte that ends every document of byte-level text: it does not occur in text."""


def pack(carried: np.ndarray, tokens: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut `carried` followed by `tokens` (both [n]) into blocks.

    Returns (blocks [m, block], what did not fill a block [< block]); the latter is `carried` of the next call, so only
    the end of the last document of a split is ever dropped.
    """
    stream = np.concatenate([carried, tokens]) if len(carried) else tokens
    full = len(stream) // block * block
    return stream[:full].reshape(-1, block), stream[full:].copy()


def byte_tokens(text: bytes) -> np.ndarray:
    """One document as uint8 tokens [len(text) + 1]: its bytes, then the separator."""
    return np.frombuffer(text + bytes([SEPARATOR]), dtype=np.uint8)


def token_dtype(vocabulary: int) -> np.dtype:
    """The smallest unsigned type that torch also has: uint8, uint16; else int32."""
    return np.dtype(np.uint8 if vocabulary <= 1 << 8 else np.uint16 if vocabulary <= 1 << 16 else np.int32)
