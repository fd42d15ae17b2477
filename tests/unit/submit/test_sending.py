"""What `shoal submit` sends: the right command, the right folder, and no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.cli.main import run
from shoal.errors import ConfigError
from shoal.job.recipe import load_recipe
from shoal.launch.cluster import shipping
from shoal.submit.sending import STAYS_HERE, Wish, make_submission

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
HERE = {"PLACE": "north", "HF_TOKEN": "abc", "AWS_SECRET_ACCESS_KEY": "def"}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def command(**wished: Any) -> list[str]:
    return list(make_submission(Wish(**wished), HERE).command)


def test_a_recipe_becomes_the_command_that_trains_it() -> None:
    said = make_submission(
        Wish(recipe="jobs/gpt.py", overrides=("workers.max=4", "optimizer.lr=3e-4"), runs="/data/runs", name="first"),
        HERE,
    )
    assert said.name == "first"
    assert list(said.command) == [
        *("python", "-m", "shoal", "train", "jobs/gpt.py", "--name", "first"),
        *("--set", "workers.max=4", "--set", "optimizer.lr=3e-4", "--runs", "/data/runs"),
    ]
    assert said.runtime_env["working_dir"] == str(ROOT)
    assert said.runtime_env["py_modules"] == shipping()["py_modules"]


def test_the_command_is_one_that_shoal_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for wished in (
        {"recipe": "jobs/gpt.py", "new_data": True, "resume": "old", "as_json": True, "tracking_uri": "http://mlflow"},
        {"recipe": "tuning/lr_schedule.py", "sweep": True, "overrides": ("trials=3", "job.budget.steps=5")},
        {"resume": "gpt-1", "overrides": ("budget.steps=9",), "name": "gpt-2", "runs": "there"},
    ):
        words = command(**wished)
        assert words[:3] == ["python", "-m", "shoal"]
        assert run([*words[3:], "--help"]) == 0, words  # every option before --help is parsed
    assert "Usage: shoal resume" in capsys.readouterr().out


def test_a_name_is_made_of_the_job() -> None:
    one, two = (make_submission(Wish(recipe="jobs/gpt.py"), HERE).name for _ in range(2))
    assert one.startswith("gpt-")
    assert one != two
    assert make_submission(Wish(recipe="tuning/batch_size.py", sweep=True), HERE).name.startswith("batch_size-")
    assert make_submission(Wish(resume="gpt-1"), HERE).name.startswith("gpt-1-")


@pytest.mark.parametrize(
    ("wished", "said"),
    [
        ({}, "name the recipe of the job"),
        ({"sweep": True, "resume": "a"}, "name the recipe of the sweep"),
        ({"recipe": "jobs/gtp.py"}, r"did you mean jobs/gpt\.py"),
        ({"recipe": "jobs/gpt.py", "overrides": ("optimizer.lrr=1",)}, r"did you mean optimizer\.lr"),
        ({"recipe": "tuning/lr_schedule.py"}, "submit it with --sweep"),
        ({"recipe": "jobs/gpt.py", "sweep": True}, "defines no `sweep`"),
        ({"recipe": "jobs/gpt.py", "folder": Path("tuning")}, "lies outside of .*--working-dir"),
        ({"recipe": "tuning/lr_schedule.py", "sweep": True, "folder": Path("tuning")}, r"gpt\.py lies outside of"),
        ({"recipe": "jobs/gpt.py", "folder": Path("nowhere")}, "nowhere is no folder"),
        ({"recipe": "jobs/gpt.py", "tracking_uri": "http://me:pw@mlflow:5000"}, "has a password in it"),
        ({"recipe": "jobs/gpt.py", "overrides": ("data.train=https://me:pw@store/a",)}, "--set has a password in it"),
        ({"recipe": "jobs/gpt.py", "environment": ("HF_TOKEN",)}, "HF_TOKEN looks like a secret"),
        ({"recipe": "jobs/gpt.py", "environment": ("AWS_SECRET_ACCESS_KEY=x",)}, "looks like a secret"),
        ({"recipe": "jobs/gpt.py", "environment": ("wandb_api_key=x",)}, "looks like a secret"),
        ({"recipe": "jobs/gpt.py", "environment": ("URL=http://me:pw@host",)}, "looks like a secret"),
        ({"recipe": "jobs/gpt.py", "environment": ("NOT_HERE",)}, "no such variable here"),
        ({"recipe": "jobs/gpt.py", "environment": ("a b=1",)}, "is no name of a variable"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_a_cluster_is_asked(wished: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        command(**wished)


def test_a_refusal_never_repeats_the_secret() -> None:
    for wished in (
        {"environment": ("HF_TOKEN=hunter2",)},
        {"environment": ("URL=http://me:hunter2@host",)},
        {"tracking_uri": "http://me:hunter2@mlflow"},
        {"overrides": ("data.train=http://me:hunter2@host",)},
    ):
        with pytest.raises(ConfigError) as raised:
            command(recipe="jobs/gpt.py", **wished)
        assert "hunter2" not in str(raised.value)


def test_only_what_was_asked_for_leaves_the_environment() -> None:
    said = make_submission(Wish(recipe="jobs/gpt.py", environment=("PLACE", "COLOUR=teal")), HERE)
    assert said.environment == {"PLACE": "north", "COLOUR": "teal"}
    assert "abc" not in str(said.runtime_env)
    assert set(said.runtime_env) == {"working_dir", "excludes", "env_vars", "py_modules"}


def test_a_recipe_of_another_name_and_one_that_needs_what_is_only_there(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text("import only_on_the_cluster\njob = 1\n")
    assert command(recipe=str(recipe), folder=tmp_path)[4] == "mine.py"
    assert command(recipe=f"{recipe}:small", folder=tmp_path)[4] == "mine.py:small"
    recipe.write_text("import shoal\nfrom shoal.job.recipe import load_recipe\n"
                      f"small = load_recipe({str(ROOT / 'jobs' / 'gpt.py')!r}).job\n")  # fmt: skip
    assert command(recipe=f"{recipe}:small", folder=tmp_path)[4] == "mine.py:small"


def test_the_best_of_a_sweep_is_sent_from_its_own_folder(tmp_path: Path) -> None:
    best = tmp_path / "runs" / "sweeps" / "lr" / "best.py"
    best.parent.mkdir(parents=True)
    best.write_text((ROOT / "jobs" / "gpt.py").read_text())
    with pytest.raises(ConfigError, match=f"--working-dir {best.parent}"):
        command(recipe=str(best), folder=tmp_path)
    assert command(recipe=str(best), folder=best.parent)[4] == "best.py"


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_results_caches_and_secrets_stay_here(tmp_path: Path) -> None:
    from pathspec import PathSpec  # what Ray reads the patterns with

    stays = PathSpec.from_lines("gitwildmatch", STAYS_HERE)
    for path in (
        *("runs/gpt-1/ledger.jsonl", ".git/config", ".venv/bin/python", ".venv-old/a", "a/__pycache__/b.pyc"),
        *(".env", "deploy/.env.local", "keys/me.pem", ".aws/credentials", "x.egg-info/PKG-INFO", ".mypy_cache/1"),
    ):
        assert stays.match_file(path), path
    for path in ("jobs/gpt.py", "mypackage/runs/a.py", "environment.py", "data/keys.txt", "pyproject.toml"):
        assert not stays.match_file(path), path
    assert load_recipe("jobs/gpt.py").job.name == "gpt"
