"""Warm workers that move between runs in place: `open_pool`."""

from shoal.pool.opening import OpenPool, open_pool
from shoal.pool.spec import PoolSpec

__all__ = ["OpenPool", "PoolSpec", "open_pool"]
