"""The digest of samples, whatever files and row groups they lie in: what the manifest of prepared data says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


class ContentDigest:
    """SHA-256 over columns of samples, one hash per column, so that it does not matter how they are cut into parts."""

    def __init__(self) -> None:
        self._hashes: dict[str, hashlib._Hash] = {}

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Go on with further samples: column name -> [n, ...], n at least 1."""
        for name, column in columns.items():
            self._hashes.setdefault(name, hashlib.sha256()).update(np.ascontiguousarray(column).data)

    def hexdigest(self) -> str:
        """Of all samples so far, in order."""
        said = "".join(f"{name}:{h.hexdigest()};" for name, h in sorted(self._hashes.items()))
        return hashlib.sha256(said.encode()).hexdigest()
