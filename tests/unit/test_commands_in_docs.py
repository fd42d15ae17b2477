"""What the pages tell people to type is real: every `shoal ...` in them is parsed by the command line itself."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import click
import pytest

from shoal.cli.main import shoal
from shoal.errors import ShoalError
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGES = [p for p in (ROOT / "README.md", ROOT / "jobs" / "README.md", *(ROOT / "docs").rglob("*.md")) if p.exists()]
HELP = {name: c.help for name, c in shoal.commands.items()} | {"shoal": shoal.help}

_END = frozenset({"|", "||", "&&", ";", ">", ">>", "2>&1", "&"})


def commands_in(text: str) -> list[str]:
    """Commands in code: lines of fenced blocks in a shell's language or none, and inline code."""
    found = []
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.S | re.M):
        if language in ("", "sh", "bash", "shell", "console"):
            joined = block.replace("\\\n", " ")
            lines = [_unprompted(line) for line in joined.splitlines()]
            found += [line for line in lines if re.match(r"shoal [a-z-]", line) and "──" not in line]
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
    return found + re.findall(r"`(shoal [a-z-][^`]*)`", outside)


def _unprompted(line: str) -> str:
    """The command in a line of a shell session, without prompt, path, variables and `ray job submit ... --`."""
    line = re.sub(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*", "", line)
    line = re.sub(r"^ray job submit .*? -- ", "", line)
    return re.sub(r"^\S*/(?=shoal )", "", line)


def arguments_of(command: str) -> list[str] | None:
    """What follows `shoal`; None for an outline such as `shoal train RECIPE [--set ...]`."""
    words = shlex.split(re.sub(r"<[^>]*>", "X", command), comments=True)[1:]
    words = words[: next((i for i, w in enumerate(words) if w in _END), len(words))]
    return None if any("…" in w or w.startswith(("[", "...")) or w.endswith("...") for w in words) else words


def parse(arguments: list[str]) -> None:
    """Parse as the command line would, and do nothing. Raises click.UsageError."""
    command: click.Command = shoal
    words = list(arguments)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            raise click.UsageError(f"there is no command {words[0]}")
        command = command.commands[words.pop(0)]
    with suppress(click.exceptions.Exit):  # --help and --version end here
        try:
            command.make_context("shoal", words)
        except click.MissingParameter:
            if words:  # else the text only names the command
                raise


CASES = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}")
    for page in PAGES
    for command in commands_in(page.read_text())
] + [
    pytest.param(line.strip(), id=f"{name} --help: {line.strip()}")
    for name, text in HELP.items()
    for line in (text or "").splitlines()
    if line.strip().startswith("shoal ")
]


@pytest.mark.parametrize("command", CASES)
def test_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = arguments_of(re.sub(r"\s{2,}[^-\s].*$", "", command))
    if arguments is None:
        return
    parse(arguments)
    monkeypatch.chdir(ROOT)
    if arguments[:1] == ["train"] and len(arguments) > 1 and arguments[1].startswith("jobs/"):
        values = [after for word, after in pairwise(arguments) if word in ("--set", "-s")]
        apply(load_recipe(arguments[1]).job, values)


def test_wrong_commands_are_seen() -> None:
    page = """
Say `shoal trian jobs/gpt.py`.
```sh
$ .venv/bin/shoal train jobs/gpt.py --sett a=b   # comment
ray job submit --working-dir . -- shoal runs --jsonn | head
```
"""
    found = commands_in(page)
    assert len(found) == 3
    for command in found:
        with pytest.raises((click.UsageError, ShoalError)):
            parse(arguments_of(command) or [])
