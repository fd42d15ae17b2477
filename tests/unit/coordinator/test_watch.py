"""Who holds up a view, who only waits, and when nobody can say."""

from __future__ import annotations

import pytest

from shoal.coordinator.watch import BEATS_MISSED_S, FLOOR_S, Pulse
from shoal.membership.messages import Progress

pytestmark = pytest.mark.unit

LOOK_S = 0.25
STEP_S = 0.1


class World:
    """A view whose members do as they are told, in half-second words, looked at as often as the coordinator does."""

    def __init__(self, *members: str, silence_s: float = 60.0) -> None:
        self.members, self.now = members, 100.0
        self.pulse = Pulse(silence_s)
        self.pulse.begin(members, self.now)

    def goes_on(self, seconds: float, **doing: str | None) -> dict[str, str] | None:
        """The members say the same for so long: what they are doing; None: nothing at all. What was found last."""
        found, until = self.pulse.stuck(self.now, STEP_S), self.now + seconds
        while self.now < until:
            self.now += LOOK_S
            for member in self.members:
                said = doing.get(member, "update")
                if said is not None:
                    step = 8 if said == "ahead" else 7
                    self.pulse.beat(member, Progress(step, 1, "update" if said == "ahead" else said), self.now)
            found = self.pulse.stuck(self.now, STEP_S)
        return found


def test_who_does_not_speak_is_the_cause_and_nobody_sooner_than_the_limit() -> None:
    world = World("a", "b", "c")
    assert world.goes_on(FLOOR_S - 1, b=None) is None
    found = world.goes_on(2, b=None)
    assert found is not None
    assert list(found) == ["b"]
    assert "did not speak" in found["b"]


@pytest.mark.parametrize("doing", ["data", "compute"])
def test_who_holds_up_those_that_wait_in_the_update_is_the_cause(doing: str) -> None:
    found = World("a", "b", "c").goes_on(FLOOR_S + 1, c=doing)
    assert found is not None
    assert list(found) == ["c"]


def test_members_that_all_wait_for_each_other_are_not_to_blame() -> None:
    """As when they lost sight of each other: to kill all of them would lose the state."""
    assert World("a", "b", "c").goes_on(FLOOR_S + 1) == {}
    assert World("a", "b", "c").goes_on(FLOOR_S + 1, b="ahead") == {}, "it got the last part of the step in time"


def test_one_alone_waits_for_nobody() -> None:
    found = World("a").goes_on(FLOOR_S + 1)
    assert found is not None
    assert list(found) == ["a"]


def test_if_nobody_is_heard_it_may_be_the_coordinator_whom_nobody_reaches() -> None:
    world = World("a", "b", silence_s=40.0)
    assert world.goes_on(39, a=None, b=None) is None
    assert world.goes_on(0.25, b=None) is None
    assert World("a", "b", silence_s=40.0).goes_on(41, a=None, b=None) != {}


def test_nobody_is_to_blame_for_a_coordinator_that_slept() -> None:
    world = World("a", "b")
    world.goes_on(1)
    world.now += 10 * FLOOR_S
    assert world.pulse.stuck(world.now, STEP_S) is None
    assert world.goes_on(BEATS_MISSED_S) is None
    found = world.goes_on(FLOOR_S, b=None)
    assert found is not None, "what hung before hangs still"
    assert list(found) == ["b"]


def test_a_coordinator_that_looks_seldom_finds_it_later_but_finds_it() -> None:
    pulse, now = Pulse(60.0), 0.0
    pulse.begin(["a", "b"], now)
    while (found := pulse.stuck(now, STEP_S)) is None:
        now += 3.0
        pulse.beat("a", Progress(7, 1, "update"), now)
        assert now < 60.0
    assert list(found) == ["b"]
