"""Log lines: one JSON object each, with what is known of run, worker, view and step."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from shoal import logs

pytestmark = pytest.mark.unit


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What is written; afterwards logging is as it was."""
    logger = logging.getLogger("shoal")
    before = logger.handlers, logger.propagate, logger.level
    yield io.StringIO()
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])
    logs.note(run=None, worker=None, view=None, step=None)


def test_json_lines_say_where_they_come_from(out: io.StringIO) -> None:
    logs.configure("json", out, run="gpt-1", worker="w2")
    logs.note(view=3, step=41)
    logging.getLogger("shoal.worker").info("joined %s", "it", extra=logs.extra(event="join"))
    logs.note(view=None)
    logging.getLogger("shoal").warning("two\nlines")
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info", "logger": "shoal.worker", "run": "gpt-1", "worker": "w2", "view": 3, "step": 41,
        "event": "join", "message": "joined it",
    }  # fmt: skip
    assert "view" not in second
    assert second["message"] == "two\nlines"


def test_a_traceback_stays_in_its_line(out: io.StringIO) -> None:
    logs.configure("json", out)
    try:
        raise ZeroDivisionError("scripted")
    except ZeroDivisionError as error:
        logging.getLogger("shoal").error("failed", exc_info=error)
    (line,) = out.getvalue().splitlines()
    assert "ZeroDivisionError: scripted" in json.loads(line)["traceback"]


def test_text_lines_are_for_people(out: io.StringIO) -> None:
    logs.configure("text", out, run="gpt-1")
    logging.getLogger("shoal").warning("slow")
    assert out.getvalue().strip().endswith("WARNING run=gpt-1 slow")


def test_a_process_that_serves_another_run_says_so(out: io.StringIO) -> None:
    logs.configure("json", out, run="gpt-1", worker="w2")
    logs.note(view=3)
    logs.configure("json", out, run="gpt-2", worker="w0")
    logging.getLogger("shoal").info("hello")
    line = json.loads(out.getvalue())
    assert (line["run"], line["worker"], "view" in line) == ("gpt-2", "w0", False)


def test_other_loggers_are_left_alone(out: io.StringIO) -> None:
    logs.configure("json", out)
    logging.getLogger("somebody.else").warning("theirs")
    logging.getLogger("shoal").debug("not shown")
    assert out.getvalue() == ""
