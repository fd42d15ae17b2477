"""The stream between pump and feed: positions, back-pressure, release, failure. A thread and an event loop, no Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shoal.data.stream import Stream
from shoal.errors import DataError

pytestmark = pytest.mark.unit

DEADLINE_S = 10.0


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, DEADLINE_S))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        threading.Event().wait(0.002)


def pump(stream: Stream, blocks: int, rows: int = 10, nbytes: int = 100) -> threading.Thread:
    """Blocks `0`, `1`, ... as fast as the stream takes them."""

    def work() -> None:
        for i in range(blocks):
            if not stream.put(str(i), rows, nbytes):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_ranges_become_blocks_each_once() -> None:
    stream = Stream("train", first=0, start=0, stop=35, limit=None)
    pump(stream, 4).join()
    every = [("0", 0, 0, 10), ("1", 10, 10, 20), ("2", 20, 20, 30), ("3", 30, 30, 35)]
    assert run(stream.locate([(0, 10)])) == every[:1]
    assert run(stream.locate([(7, 32), (0, 10), (31, 35), (5, 5)])) == every
    assert run(stream.locate([(31, 32), (0, 1)])) == [every[0], every[3]]
    assert run(stream.locate([(10, 20)])) == every[1:2]
    assert run(stream.locate([])) == []


def test_a_stream_may_begin_inside_a_block() -> None:
    stream = Stream("train", first=20, start=27, stop=50, limit=None)
    pump(stream, 3).join()
    assert run(stream.locate([(27, 31)])) == [("0", 20, 27, 30), ("1", 30, 30, 40)]
    with pytest.raises(DataError, match=r"\[26, 31\) of the train stream"):
        run(stream.locate([(26, 31)]))
    with pytest.raises(DataError, match="runs from 27 to 50"):
        run(stream.locate([(45, 51)]))


def test_locate_waits_for_what_is_not_there_yet() -> None:
    stream = Stream("train", first=0, start=0, stop=100, limit=None)

    async def work() -> list:
        waiting = [asyncio.create_task(stream.locate([(i * 10, i * 10 + 10)])) for i in range(5)]
        await asyncio.sleep(0)
        pump(stream, 5)
        return await asyncio.gather(*waiting)

    assert run(work()) == [[(str(i), i * 10, i * 10, i * 10 + 10)] for i in range(5)]


def test_the_pump_holds_back_at_its_limit_and_goes_on_after_a_release() -> None:
    stream = Stream("train", first=0, start=0, stop=1000, limit=300)
    thread = pump(stream, 100)
    until(lambda: stream.status().held_bytes == 300)
    until(lambda: not stream.wanted.is_set())
    run(stream.locate([(0, 10)]))
    assert stream.status().held_blocks == 3
    assert stream.status().ahead == 30
    stream.release(15)
    until(lambda: stream.status().produced == 40)
    assert stream.status().held_blocks == 3, "block 1 holds positions from 15 on"
    stream.release(1000)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert stream.status().held_bytes == 0
    assert stream.wanted.is_set()


def test_a_request_larger_than_the_limit_is_served() -> None:
    stream = Stream("train", first=0, start=0, stop=1000, limit=100)
    pump(stream, 100)
    assert len(run(stream.locate([(0, 500)]))) == 50
    assert stream.status().held_bytes >= 5000
    stream.release(500)
    assert len(run(stream.locate([(500, 1000)]))) == 50


def test_one_block_larger_than_the_limit_passes() -> None:
    stream = Stream("train", first=0, start=0, stop=40, limit=1)
    pump(stream, 4)
    for step in range(4):
        assert [b.ref for b in run(stream.locate([(step * 10, step * 10 + 10)]))] == [str(step)]
        stream.release(step * 10 + 10)


def test_a_rolled_back_range_can_be_located_again_until_it_is_released() -> None:
    stream = Stream("train", first=0, start=0, stop=40, limit=None)
    pump(stream, 4).join()
    assert run(stream.locate([(12, 18)])) == [("1", 10, 10, 20)]
    stream.release(12)
    assert run(stream.locate([(12, 18)])) == [("1", 10, 12, 20)]
    stream.release(18)
    stream.release(3)
    with pytest.raises(DataError, match="those before 18 have been released"):
        run(stream.locate([(12, 18)]))


def test_a_failure_reaches_all_who_wait_and_all_who_come_later() -> None:
    stream = Stream("train", first=0, start=0, stop=100, limit=None)
    pump(stream, 2).join()

    async def work() -> list:
        waiting = [asyncio.create_task(stream.locate([(0, stop)])) for stop in (50, 90)]
        await asyncio.sleep(0)
        threading.Thread(target=stream.fail, args=(DataError("b.parquet is gone"),)).start()
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [str(e) for e in run(work())] == ["b.parquet is gone"] * 2
    with pytest.raises(DataError, match=r"b\.parquet is gone"):
        run(stream.locate([(0, 21)]))
    assert [b.ref for b in run(stream.locate([(0, 5)]))] == ["0"], "what was produced before can still be used"
    assert stream.status().error == "b.parquet is gone"


def test_closing_ends_the_pump_and_refuses_requests() -> None:
    stream = Stream("train", first=0, start=0, stop=1000, limit=100)
    thread = pump(stream, 100)
    until(lambda: stream.status().held_blocks == 1)

    async def work() -> list:
        waiting = asyncio.create_task(stream.locate([(0, 1000)]))
        await asyncio.sleep(0)
        stream.close()
        return await asyncio.gather(waiting, return_exceptions=True)

    assert "closed" in str(run(work())[0])
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    with pytest.raises(DataError, match="closed"):
        run(stream.locate([(0, 1)]))


def test_a_caller_who_gives_up_leaves_nothing_behind() -> None:
    stream = Stream("train", first=0, start=0, stop=1000, limit=100)

    async def work() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.locate([(0, 1000)]), 0.01)

    run(work())
    pump(stream, 100)
    until(lambda: stream.status().held_blocks == 1)
    assert stream.status().produced == 10, "nobody waits any more, so the limit counts again"
