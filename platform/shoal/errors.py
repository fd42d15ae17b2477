"""Every error that Shoal raises on purpose.

Each message says the value, the reason and the remedy. Each class takes exactly one string, so that all of them
survive pickling between processes. The command line prints them without a traceback.
"""

from __future__ import annotations


class ShoalError(Exception):
    """Base class. ``exit_code`` is what the command line leaves with."""

    exit_code = 1


class ConfigError(ShoalError, ValueError):
    """The job, the recipe or the command line asks for something that cannot be."""

    exit_code = 2


class DataError(ShoalError, ValueError):
    """The data set cannot be read, is empty, or lacks what the task needs."""

    exit_code = 2


class CheckpointError(ShoalError):
    """A checkpoint is missing, torn, or belongs to another model."""

    exit_code = 2


class CapacityError(ShoalError):
    """The cluster cannot give what the job asks for."""

    exit_code = 2


class TaskError(ShoalError):
    """The user's own code failed inside a worker; the message carries its traceback. Never retried."""


NOT_FINITE = "the gradient is not finite"
"""Words in the TaskError of a step whose loss or gradient overflowed, by which a range test knows it from others."""


class WorkerLost(ShoalError):
    """A worker died, or stayed silent beyond its deadline."""


class WorkerRefused(ShoalError):
    """A worker came up with other code or another model than the run's; the message names what differs."""


class StaleProcess(ShoalError):
    """A process that was kept warm cannot serve the next run, and a new one can; the message says why."""


class RunOver(ShoalError):
    """A coordinator was asked for a run that it does not host any more."""


class TrainingFailed(ShoalError):
    """The run ended without reaching its budget; the message says why and where the record is."""


class Interrupted(ShoalError):
    """The run was stopped by its user after a clean checkpoint."""

    exit_code = 130
