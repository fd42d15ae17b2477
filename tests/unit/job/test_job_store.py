"""A run's folder holds its job so that people can read it and Shoal can run it again."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass, replace

import pytest

from shoal.errors import ConfigError
from shoal.job import Budget, Cost, Data, Engine, Job, Workers
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe
from shoal.job.store import job_digest, load_job, save_job
from shoal.run_folder import RunFolder
from shoal.tasks.base import Task

pytestmark = pytest.mark.unit

RECIPE = """
import os
from dataclasses import dataclass
from shoal.job import Budget, Data, Job
from shoal.tasks.base import Task
import sizes_of_tests as sizes

@dataclass(frozen=True)
class Mine(Task):
    width: int = sizes.WIDTH
    def build(self): return self.width
    def loss(self, model, batch): return 0

job = Job(task=Mine(), data=Data(train="x"), budget=Budget(epochs=2), seed=int(os.environ.get("TEST_SEED", "0")))
"""


@dataclass(frozen=True)
class Here(Task):
    width: int = 2

    def build(self):
        return self.width

    def loss(self, model, batch):
        return 0


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my jobs").mkdir()
    (tmp_path / "my jobs/sizes_of_tests.py").write_text("WIDTH = 16\n")
    (tmp_path / "my jobs/r.py").write_text(RECIPE)
    return "my jobs/r.py"


def test_a_recipe_is_kept_and_runs_again_without_the_original(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    overrides = ["task.width=32", "budget.steps=5", "checkpoints.keep_best=val/loss"]
    job = apply(recipe.job, overrides)
    folder = RunFolder(tmp_path / "runs/r-1")
    said = save_job(folder, job, recipe, overrides)
    assert json.loads(folder.job.read_text()) == said
    assert sorted(said["overrides"]) == sorted(overrides)
    assert said["values"]["task.width"] == "32"
    assert said["digest"] == job_digest(job)
    shutil.rmtree(tmp_path / "my jobs")

    words = shlex.split(said["run_again"])
    assert words[:3] == ["shoal", "train", "runs/r-1/recipe/r.py"]
    again = apply(load_recipe(words[2]).job, words[4::2])
    assert job_digest(again) == job_digest(job) == job_digest(load_job(folder))
    assert load_job(folder, ["budget.epochs=1"]).budget == Budget(epochs=1)

    # Running it again from its own copy keeps the copy.
    save_job(folder, again, load_recipe(words[2]), overrides)
    assert load_job(folder).task.width == 32


def test_a_run_that_goes_on_with_other_values_keeps_its_recipe(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    folder = RunFolder(tmp_path / "runs/r-1")
    save_job(folder, apply(recipe.job, ["budget.steps=5", "seed=1"]), recipe, ["budget.steps=5", "seed=1"])
    job = load_job(folder, ["budget.epochs=1", "workers.max=3"])
    said = save_job(folder, job, None, ["budget.epochs=1", "workers.max=3"])
    assert said["source"] == "recipe/r.py"
    assert sorted(said["overrides"]) == ["budget.epochs=1.0", "seed=1", "workers.max=3"]
    assert load_job(folder).budget == Budget(epochs=1)
    words = shlex.split(said["run_again"])
    assert job_digest(apply(load_recipe(words[2]).job, words[4::2])) == job_digest(job)


def test_a_job_that_overrides_cannot_make_of_its_recipe_is_pickled(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    folder = RunFolder(tmp_path / "runs/r-1")
    said = save_job(folder, replace(recipe.job, task=Here(width=9)), recipe)
    assert said["source"] == "job.pkl"
    assert load_job(folder).task == Here(width=9)


def test_the_recorded_values_win_over_the_surroundings(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_SEED", "7")
    recipe = load_recipe(recipe_file)
    folder = RunFolder(tmp_path / "runs/r-1")
    save_job(folder, recipe.job, recipe)
    monkeypatch.delenv("TEST_SEED")
    copy = folder.recipe / "r.py"
    copy.write_text(copy.read_text().replace("epochs=2", "steps=2"))
    assert load_job(folder).seed == 7
    assert load_job(folder).budget == Budget(epochs=2)

    copy.write_text(copy.read_text().replace("width", "breadth"))
    with pytest.raises(
        ConfigError, match=r"cannot be restored as it was: there is no task\.width.*start a new run with: shoal"
    ):
        load_job(folder)


def test_a_job_without_a_recipe_is_pickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @dataclass(frozen=True)
    class Local(Here):
        depth: int = 3

    job = Job(task=Local(), data=Data(train="x"), budget=Budget(steps=3), name="api")
    folder = RunFolder(tmp_path / "runs/api-1")
    said = save_job(folder, job, None)
    assert said["run_again"] == "shoal train runs/api-1/job.pkl"
    loaded = load_job(folder, ["task.depth=5"])
    assert (loaded.name, loaded.task.depth, loaded.task.build()) == ("api", 5, 2)

    second = RunFolder(tmp_path / "runs/api-2")
    recipe = load_recipe("runs/api-1/job.pkl")
    save_job(second, recipe.job, recipe)
    assert load_job(second).task.depth == 3


def test_unreadable_jobs_are_refused_by_name(tmp_path):
    folder = RunFolder(tmp_path / "r")
    with pytest.raises(ConfigError, match=r"no job in .*job\.json is missing"):
        load_job(folder)
    folder.path.mkdir()
    folder.job.write_text("{")
    with pytest.raises(ConfigError, match=r"job\.json is damaged"):
        load_job(folder)
    folder.job.write_text('{"format": 9}')
    with pytest.raises(ConfigError, match=r"format 9, this Shoal reads 1"):
        load_job(folder)
    (folder.path / "job.pkl").write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"job\.pkl cannot be loaded: "):
        load_recipe(folder.path / "job.pkl")


def test_the_digest_covers_what_decides_the_result_and_nothing_else():
    job = Job(task=Here(), data=Data(train="x"), budget=Budget(steps=3))
    digest = job_digest(job)
    assert digest == "81b45128fd356bc1d9412534d838b31244eb947d17dc0cb46ba2bcc82633ce9a"
    same = [
        replace(job, name="other"),
        replace(job, workers=Workers(max=8)),
        replace(job, engine=Engine(name="zero", stage=3, offload=True)),
        replace(job, data=Data(train="x", cpus=2, ahead_mb=9)),
        replace(job, cost=Cost(instance="g5.xlarge", watts_per_core=9.0)),
    ]
    assert {job_digest(j) for j in same} == {digest}
    different = [
        replace(job, seed=1),
        replace(job, task=Here(width=3)),
        replace(job, budget=Budget(steps=4)),
        replace(job, data=Data(train="y")),
        replace(job, engine=Engine(precision="bf16")),
    ]
    assert len({job_digest(j) for j in different} | {digest}) == 6
