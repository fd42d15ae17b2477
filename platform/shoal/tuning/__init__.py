"""Sweeps: many jobs made from one, tried by Ray Tune. What a sweep recipe needs is here."""

from __future__ import annotations

from shoal.tuning.space import choice, family, integers, loguniform, one_of, quniform, uniform
from shoal.tuning.spec import ASHA, TPE, Grid, HyperBand, Limit, Median, Population, Random, Sweep

__all__ = [
    "ASHA",
    "TPE",
    "Grid",
    "HyperBand",
    "Limit",
    "Median",
    "Population",
    "Random",
    "Sweep",
    "choice",
    "family",
    "integers",
    "loguniform",
    "one_of",
    "quniform",
    "uniform",
]
