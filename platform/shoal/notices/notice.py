"""What is asked of a metadata service, what it answers, and a notice: plain values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a metadata service."""

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "GET"
    holds_s: float = 0.0
    """For how long the service may keep its answer back on purpose."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The provider will take this machine, or recommends to leave it."""

    what: str
    """For people: `AWS spot interruption (terminate)`."""
    deadline: float
    """Unix seconds when it may go, at the earliest."""
    certain: bool = True
    """False: a recommendation; the machine may as well stay."""


Ask = Callable[[Request], Awaitable[Answer]]
"""Raises OSError if no answer comes in time."""


class Provider(Protocol):
    """Knows how one cloud says it. One instance belongs to one watcher: it keeps tokens and marks."""

    name: str
    """For people."""

    async def is_here(self, ask: Ask) -> bool:
        """Whether the service that answers is this provider's."""
        ...

    async def look(self, ask: Ask, now: float) -> Notice | None:
        """The notice that stands; None: there is none. `now`: Unix seconds.

        May keep quiet for as long as its requests say. Raises OSError if the service does not answer, ValueError if
        what it answers cannot be understood.
        """
        ...


def understood(answer: Answer, what: str) -> Answer:
    """`answer`, if its status is 200; else raises ValueError that says `what` was asked for."""
    if answer.status != 200:
        raise ValueError(f"{what} was answered with HTTP status {answer.status}: {answer.body[:200]!r}")
    return answer
