"""How often to save: the optimum between the time that saving takes and the time that a loss throws away."""

from __future__ import annotations

from math import sqrt


def young(save_s: float, between_s: float) -> float:
    """Seconds of work between two saves that take `save_s` each, if a loss comes each `between_s` seconds.

    First order: J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974.
    """
    return sqrt(2.0 * save_s * between_s)


def daly(save_s: float, between_s: float) -> float:
    """The same to higher order, for saves that are not short against `between_s`.

    J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22(3), 2006, eq. 37.
    """
    if save_s >= 2.0 * between_s:
        return between_s
    ratio = save_s / (2.0 * between_s)
    return young(save_s, between_s) * (1.0 + sqrt(ratio) / 3.0 + ratio / 9.0) - save_s


def steps_of(seconds: float, step_s: float) -> int:
    """The nearest whole number of steps, at least one."""
    return max(1, round(seconds / step_s))
