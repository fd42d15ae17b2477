from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shoal import __version__, environment
from shoal.cli import main
from shoal.errors import CapacityError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "jobs" / "digits.py"


def commands(group: click.Group = main.shoal, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        found[(*path, name)] = command
        if isinstance(command, click.Group):
            found.update(commands(command, (*path, name)))
    return found


def shoal(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoal", *arguments], capture_output=True, text=True, check=False, cwd=cwd, timeout=60,
        env={k: v for k, v in os.environ.items() if k not in environment.VARIABLES},
    )  # fmt: skip


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_explains_itself_with_examples(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*path, "--help"]) == 0
    said = capsys.readouterr().out
    if not isinstance(commands()[path], click.Group):
        assert f"shoal {' '.join(path)}" in said.split("Options:")[0].split("\n", 1)[1], "an example is missing"
    for parameter in commands()[path].params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), (
            f"{parameter.name} has no help"
        )


def test_help_appears_at_once() -> None:
    """What takes long to import is imported by the command that needs it."""
    code = "import sys; from shoal.cli.main import shoal; shoal(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {
        "ray",
        "torch",
        "numpy",
        "pyarrow",
        "mlflow",
        "deepspeed",
        "optuna",
        "pandas",
        "rich",
        "jsonschema",
    }


def test_version() -> None:
    assert shoal("--version").stdout.strip() == f"shoal {__version__}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "jobs/digit.py"], "did you mean jobs/digits.py?"),
        (["train", "jobs/digits.py", "--set", "optimiser.lr=1"], "did you mean optimizer.lr?"),
        (["train", "jobs/digits.py", "--set", "batch.size=abc"], "batch.size='abc'"),
        (["train", "jobs/digits.py", "--set", "batch.size=65"], "cannot be split into batch.virtual_shards=8"),
        (["train", "jobs/digits.py", "--set", "task.width"], "is not name=value"),
        (["train", "jobs/digits.py", "--json", "--quiet"], "exclude each other"),
        (["resume", "nothing"], "no run at"),
        (["runs", "send", "nothing"], "no run at"),
        (["ui"], "train something first"),
        (["data", "prepare", "missing.txt", "--output", "new", "--block", "8"], "missing.txt"),
        (["data", "prepare", "missing.txt", "--output", "new", "--block", "1"], "Invalid value for '--block'"),
        (["sail"], "No such command 'sail'"),
        (["train"], "Missing argument 'RECIPE'"),
    ],
)
def test_mistakes_give_one_message_and_exit_code_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    result = shoal(*arguments, cwd=tmp_path)
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode == 2
    assert {p.name for p in tmp_path.iterdir()} == {"jobs"}, "a refused command leaves nothing behind"


def test_machines_hear_of_errors_on_stdout(tmp_path: Path) -> None:
    result = shoal("train", str(DIGITS), "--json", "--set", "optimizer.lr=-1", cwd=tmp_path)
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["type"] == "error"
    assert "optimizer.lr=-1" in json.loads(line)["error"]
    assert result.returncode == json.loads(line)["exit_code"] == 2


def test_our_errors_become_exit_codes_and_bugs_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error: Exception = CapacityError("8 workers asked for, the cluster can have 4; lower workers.max")

    @click.command()
    def raising() -> None:
        raise error

    monkeypatch.setitem(main.shoal.commands, "raising", raising)
    assert main.run(["raising"]) == CapacityError.exit_code
    assert capsys.readouterr().err == "Error: 8 workers asked for, the cluster can have 4; lower workers.max\n"
    error = KeyError("our bug")
    with pytest.raises(KeyError):
        main.run(["raising"])
    error = KeyboardInterrupt()  # type: ignore[assignment]
    assert main.run(["raising"]) == 130


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for n, status in enumerate(("finished", "failed", "stopped")):
        folder = tmp_path / f"gpt-{n}"
        folder.mkdir()
        said = {"run_id": folder.name, "name": "gpt", "status": status, "total_steps": 300, "started": 1e9 + n}
        (folder / "run.json").write_text(json.dumps(said))
        commit = {"kind": "commit", "time": 1e9 + n + 75, "step": 300, "loss": 1.5, "workers": 2}
        (folder / "ledger.jsonl").write_text(json.dumps(commit) + "\n")
    listed = CliRunner().invoke(main.shoal, ["runs", "--runs", str(tmp_path)]).output.splitlines()
    rows = [line.split() for line in listed if line.startswith("gpt-")]
    assert [row[0] for row in rows] == ["gpt-2", "gpt-1", "gpt-0"]
    assert rows[0][1:5] == ["stopped", "300/300", "1.5", "2"]
    as_json = CliRunner().invoke(main.shoal, ["runs", "--json"], env={environment.RUNS: str(tmp_path)}).output
    assert [json.loads(line)["status"] for line in as_json.splitlines()] == ["stopped", "failed", "finished"]


def test_no_runs_yet_says_how_to_start_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(main.shoal, ["runs", "--runs", str(tmp_path / "none")])
    assert "no runs in" in result.output
    assert "shoal train" in result.output
