"""The user's transforms as values of a job: named in the record, kept with the recipe, refused by name."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace

import pytest

from shoal.errors import ConfigError
from shoal.job import Budget, Data, Job
from shoal.job.fields import flatten
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe
from shoal.job.store import job_digest, load_job, save_job
from shoal.run_folder import RunFolder
from tests.support.plain_task import Plain
from tests.support.transforms import Hide, tokenise

pytestmark = pytest.mark.unit

RECIPE = """
from dataclasses import dataclass
from shoal.job import Budget, Data, Job
from tests.support.plain_task import Plain
from helper_of_transforms import cut

def decode(columns, keys):
    return cut(columns)

@dataclass(frozen=True)
class Noise:
    level: float = 0.1
    def __call__(self, columns, keys):
        return columns

data = Data(train="x", columns=("id", "text"), transforms=(decode, Noise(0.5)))
job = Job(task=Plain(), data=data, budget=Budget(steps=3))
"""


def a_job(*transforms, columns=()):
    return Job(task=Plain(), data=Data(train="x", columns=columns, transforms=transforms), budget=Budget(steps=3))


def test_the_record_names_them_with_their_fields():
    values = flatten(a_job(tokenise, Hide(0.5), columns=("text",)))
    assert values["data.transforms"] == "tokenise, Hide(probability=0.5)"
    assert values["data.columns"] == "text"
    plain = flatten(a_job())
    assert (plain["data.transforms"], plain["data.columns"]) == ("", "")


def test_the_digest_covers_them():
    jobs = [
        a_job(), a_job(tokenise), a_job(tokenise, Hide(0.5)), a_job(tokenise, Hide(0.25)), a_job(Hide(0.5), tokenise),
        a_job(tokenise, columns=("text",)),
    ]  # fmt: skip
    assert len({job_digest(j) for j in jobs}) == len(jobs)


def test_a_recipe_with_transforms_is_kept_and_runs_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(RECIPE)
    (tmp_path / "helper_of_transforms.py").write_text("def cut(columns):\n    return {'id': columns['id'][:9]}\n")
    recipe = load_recipe("r.py")
    job = apply(recipe.job, ["data.window=64", "seed=4"])
    assert job.data.transforms == recipe.job.data.transforms
    folder = RunFolder(tmp_path / "runs/a")
    said = save_job(folder, job, recipe)
    assert (said["source"], sorted(said["overrides"])) == ("recipe/r.py", ["data.window=64", "seed=4"])
    assert json.loads(folder.job.read_text())["values"]["data.transforms"] == "decode, Noise(level=0.5)"

    (tmp_path / "r.py").unlink()
    (tmp_path / "helper_of_transforms.py").unlink()
    loaded = load_job(folder)
    assert job_digest(loaded) == job_digest(job)
    decode, noise = loaded.data.transforms
    assert decode({"id": list(range(99))}, None) == {"id": list(range(9))}
    assert noise.level == 0.5

    # Other transforms than the recipe's are no text: such a job is pickled, with the recipe's own by value.
    other = RunFolder(tmp_path / "runs/b")
    said = save_job(
        other, replace(job, data=replace(job.data, transforms=(decode, Hide(0.5)))), load_recipe(folder.recipe / "r.py")
    )
    assert said["source"] == "job.pkl"
    assert load_job(other).data.transforms[1] == Hide(0.5)


@dataclass
class Loose:
    def __call__(self, columns, keys):
        return columns


@dataclass(frozen=True)
class Mute:
    level: int = 0


class Plain2:
    def __call__(self, columns, keys):
        return columns


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Data(train="x", transforms=tokenise), r"data\.transforms=<function .* must be a tuple.*\(decode,\)"),
        (lambda: a_job(lambda c, k: c), r"data\.transforms\[0\]=<function .*has no name .*; define a function"),
        (lambda: a_job(tokenise, Hide), r"data\.transforms\[1\]=.*Hide'> is a class; make a value of it: Hide\(\)"),
        (lambda: a_job(functools.partial(tokenise)), r"is neither a function nor a dataclass"),
        (lambda: a_job(Plain2()), r"is neither a function nor a dataclass"),
        (lambda: a_job(Mute()), r"Mute\(level=0\) cannot be called; give Mute a method __call__"),
        (lambda: a_job(Loose()), r"can be changed while it is in use; write @dataclass\(frozen=True\) above Loose"),
        (lambda: a_job(tokenise, columns="text"), r"data\.columns='text' must be names of columns"),
        (lambda: a_job(tokenise, columns=("",)), r"data\.columns=\(''?,\) must be names"),
        (lambda: a_job(columns=("text",)), r"data\.columns=text names what data\.transforms work on, and there are"),
        (lambda: apply(a_job(), ["data.transforms=tokenise"]), r"data\.transforms='tokenise' .*only be set in"),
    ],
)  # fmt: skip
def test_what_is_no_transform_is_refused_with_the_remedy(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_they_can_be_left_out_from_the_command_line():
    assert apply(a_job(tokenise), ["data.transforms="]).data.transforms == ()
