"""Augmentations as values of a job: checked by name, written as text and read back, part of the digest."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.job import Batch, Budget, Crop, CutMix, Data, Erase, Flip, Job, MaskTokens, Mixup
from shoal.job.augment import Augmentation
from shoal.job.fields import flatten
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe
from shoal.job.store import job_digest, load_job, save_job
from shoal.job.text_values import format_value, parse
from shoal.run_folder import RunFolder
from shoal.tasks.base import Task

pytestmark = pytest.mark.unit

RECIPE = """
from dataclasses import dataclass
from shoal.job import Budget, Crop, CutMix, Data, Erase, Job, Mixup
from shoal.tasks.base import Task

@dataclass(frozen=True)
class Mine(Task):
    def build(self): return 0
    def loss(self, model, batch): return 0

def make(*augment):
    return Job(task=Mine(), data=Data(train="x", augment=augment), budget=Budget(steps=3))

job = make(Crop(padding=1), Erase(fill=None), CutMix(alpha=1, classes=3))
plain = make()
"""


@dataclass(frozen=True)
class Classifier(Task):
    classes: int = 10
    vocabulary: int = 256

    def build(self):
        return 0

    def loss(self, model, batch):
        return 0


def a_job(*augment: Augmentation, **parts: Any) -> Job:
    return Job(task=Classifier(), data=Data(train="x", augment=augment), budget=Budget(steps=3), **parts)


SHARES = st.floats(0, 1)
WORDS = st.text(min_size=1)
RANGES = st.tuples(st.floats(0.001, 0.4), st.floats(0.5, 1))
PAIRS = {
    "alpha": st.floats(0.01, 10) | st.integers(1, 4), "classes": st.integers(2, 1000), "probability": SHARES,
    "column": WORDS.map("c".__add__), "label": WORDS.map("l".__add__),
}  # fmt: skip
VALUES: st.SearchStrategy[Augmentation] = st.one_of(
    st.builds(Flip, horizontal=SHARES, vertical=SHARES, column=WORDS),
    st.builds(Crop, padding=st.integers(1, 99), fill=st.floats(-9, 9) | st.integers(-9, 9), column=WORDS),
    st.builds(Erase, probability=SHARES, area=RANGES, ratio=RANGES, fill=st.none() | st.floats(-9, 9)),
    st.builds(Mixup, **PAIRS),
    st.builds(CutMix, **PAIRS),
    st.builds(
        MaskTokens, probability=st.floats(0, 0.9), token=st.integers(0, 10**6), random=SHARES,
        vocabulary=st.integers(1, 10**6), into=WORDS.map("i".__add__),
    ),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(VALUES, max_size=4).map(tuple))
def test_text_turns_back_into_the_value(value):
    annotation = tuple[Augmentation, ...]
    text = format_value(value, annotation)
    assert parse(text, annotation, "x") == value
    job = replace(a_job(), task=Task2(), data=Data(train="x", augment=value))
    assert flatten(job)["data.augment"] == text
    assert apply(replace(job, data=Data(train="x")), [f"data.augment={text}"]) == job


@dataclass(frozen=True)
class Task2(Task):
    def build(self):
        return 0

    def loss(self, model, batch):
        return 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ()),
        ("()", ()),
        ("Flip()", (Flip(),)),
        ("Flip, Crop", (Flip(), Crop())),
        (" Flip(), ", (Flip(),)),
        ("(Flip(),)", (Flip(),)),
        ("[Flip(), Crop(padding=1)]", (Flip(), Crop(padding=1))),
        ("Flip(vertical=1), CutMix(alpha=1, classes=10)", (Flip(vertical=1.0), CutMix(alpha=1.0, classes=10))),
        ("Erase(area=(0.1, 0.2), fill=None, column='a,b')", (Erase(area=(0.1, 0.2), fill=None, column="a,b"),)),
    ],
)
def test_augmentations_are_set_as_they_are_written_in_a_recipe(text, value):
    assert apply(a_job(), [f"data.augment={text}"]).data.augment == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Flap()", r"data\.augment='Flap\(\)' is not values .*Flip\(…\) or Crop\(…\).*; did you mean \"Flip\"\?"),
        (
            "Flip(horizontl=1)",
            r"; Flip has horizontal, vertical, column, and no horizontl; did you mean \"horizontal\"",
        ),
        ("Flip(0.5)", r"; name the fields: Flip\(field=value\)"),
        ("Flip(horizontal=often)", r"; Flip\.horizontal=often is not a number"),
        ("Crop(padding=1.5)", r"; Crop\.padding=1\.5 is not a whole number"),
        ("Crop(padding=Flip())", r"; Crop\.padding=Flip\(\) is not a whole number"),
        ("Erase(area=0.1)", r"; Erase\.area=0\.1 is not 2 values"),
        ("Mixup(classes=2)", r"; Mixup needs alpha"),
        ("Mixup(alpha=-1, classes=2)", r"data\.augment='.*' is refused: Mixup\.alpha=-1\.0 must be more than 0"),
        ("Mixup", r"; Mixup needs alpha"),
        ("Flip() Crop()", r"is not values"),
        ("3", r"is not values"),
        ("__import__('os')", r"is not values"),
        ("Flip(column=open('x'))", r"Flip\.column=open\('x'\) is not text"),
    ],
)
def test_text_that_is_wrong_is_refused_by_name(text, message):
    with pytest.raises(ConfigError, match=message):
        apply(a_job(), [f"data.augment={text}"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flip(horizontal=1.5), r"Flip\.horizontal=1\.5 must lie between 0 and 1"),
        (lambda: Flip(horizontal="often"), r"Flip\.horizontal='often' must be a number"),
        (lambda: Crop(padding=0), r"Crop\.padding=0 must be at least 1"),
        (lambda: Crop(padding=2.0), r"Crop\.padding=2\.0 must be a whole number"),
        (lambda: Crop(fill=float("nan")), r"Crop\.fill=nan must be a finite number"),
        (lambda: Erase(area=(0.5, 0.1)), r"Erase\.area=\(0\.5, 0\.1\) must be the smallest and the largest, at most 1"),
        (lambda: Erase(area=(0.5, 1.1)), r"Erase\.area=.* at most 1"),
        (lambda: Erase(area=0.5), r"Erase\.area=0\.5 must be two numbers"),
        (lambda: Erase(ratio=(0, 1)), r"Erase\.ratio=0 must be more than 0"),
        (lambda: Mixup(alpha=0, classes=2), r"Mixup\.alpha=0 must be more than 0"),
        (lambda: Mixup(alpha=float("inf"), classes=2), r"Mixup\.alpha=inf must be a finite number"),
        (lambda: CutMix(alpha=1, classes=1), r"CutMix\.classes=1 must be at least 2"),
        (lambda: CutMix(alpha=1, classes=2, column="label"), r"CutMix\.column and CutMix\.label are both 'label'"),
        (lambda: MaskTokens(probability=1.0, token=0), r"MaskTokens\.probability=1\.0 .*1 excluded"),
        (lambda: MaskTokens(probability=0.1, token=-1), r"MaskTokens\.token=-1 must be at least 0"),
        (lambda: MaskTokens(probability=0.1, token=0, random=0.1), r"needs MaskTokens\.vocabulary"),
        (lambda: MaskTokens(probability=0.1, token=0, into="tokens"), r"the targets would be masked, too"),
        (lambda: Flip(column=""), r"Flip\.column='' must be the name of a column"),
        (lambda: Data(train="x", augment=Flip()), r"data\.augment=Flip\(.*must be a tuple.*\(Flip\(\),\)"),
        (
            lambda: Data(train="x", augment=(Flip(), 3)),
            r"data\.augment\[1\]=3 is no augmentation; there are Flip, Crop",
        ),
        (lambda: a_job(Mixup(alpha=1, classes=3)), r"Mixup\.classes=3 in data\.augment, but task\.classes=10"),
        (lambda: a_job(MaskTokens(probability=0.1, token=256)), r"token=256 .* beyond task\.vocabulary=256"),
        (
            lambda: a_job(MaskTokens(probability=0.1, token=0, random=1, vocabulary=300)),
            r"MaskTokens\.vocabulary=300 .* beyond task\.vocabulary=256",
        ),
        (
            lambda: a_job(CutMix(alpha=1, classes=10), batch=Batch(size=8, virtual_shards=8)),
            r"CutMix in data\.augment mixes samples of one virtual shard, and a shard of this job has only one",
        ),
    ],
)
def test_values_that_are_wrong_are_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_whole_numbers_are_the_same_job_as_floats():
    assert repr(CutMix(alpha=1, classes=3)) == repr(CutMix(alpha=1.0, classes=3))
    assert repr(Erase(fill=1, ratio=(1, 2))) == repr(Erase(fill=1.0, ratio=(1.0, 2.0)))


def test_a_job_without_augmentation_has_the_digest_that_it_always_had():
    plain = a_job()
    assert flatten(plain)["data.augment"] == ""
    digests = {
        job_digest(plain), job_digest(a_job(Crop())), job_digest(a_job(Crop(padding=2))),
        job_digest(a_job(Crop(), Flip())), job_digest(a_job(Flip(), Crop())),
    }  # fmt: skip
    assert len(digests) == 5, "what is done to samples, and in which order, decides the result"


def test_a_job_with_augmentations_is_kept_and_runs_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(RECIPE)
    recipe = load_recipe("r.py")
    job = apply(recipe.job, ["data.window=64", "seed=4"])
    folder = RunFolder(tmp_path / "runs/a")
    said = save_job(folder, job, recipe)
    assert said["source"] == "recipe/r.py"
    assert sorted(said["overrides"]) == ["data.window=64", "seed=4"]
    assert json.loads(folder.job.read_text())["values"]["data.augment"] == (
        "Crop(padding=1, fill=0.0, column='image'), Erase(probability=0.5, area=(0.02, 0.33), ratio=(0.3, 3.3), "
        "fill=None, column='image'), CutMix(alpha=1.0, classes=3, probability=1.0, column='image', label='label')"
    )
    loaded = load_job(folder)
    assert loaded.data == job.data
    assert job_digest(loaded) == job_digest(job)

    # Other augmentations than the recipe's are overrides, not a pickle; and the record wins over a recipe that changed.
    plain = load_recipe("r.py:plain")
    other = RunFolder(tmp_path / "runs/b")
    said = save_job(other, replace(plain.job, data=job.data), plain)
    assert said["source"] == "recipe/r.py:plain"
    assert load_job(other).data.augment == job.data.augment
    copy = folder.recipe / "r.py"
    copy.write_text(copy.read_text().replace("padding=1", "padding=3"))
    assert load_job(folder).data.augment == job.data.augment


def test_fields_that_come_later_and_are_not_used_change_no_text():
    @dataclass(frozen=True)
    class Old:
        size: int = 3

    @dataclass(frozen=True)
    class New:
        size: int = 3
        later: float | None = None
        known: int | None = 2

    New.__name__ = "Old"
    assert format_value((Old(),), tuple[Old, ...]) == "Old(size=3)"
    assert format_value((New(known=None),), tuple[New, ...]) == "Old(size=3, known=None)"
    assert parse("Old(size=3)", tuple[New, ...], "x") == (New(),)


def test_a_dataclass_alone_or_none_is_read_too():
    assert parse("Crop(padding=2)", Crop | None, "x") == Crop(padding=2)
    assert parse("none", Crop | None, "x") is None
    with pytest.raises(ConfigError, match=r"x='Flip\(\)' is not Crop\(…\) or none"):
        parse("Flip()", Crop | None, "x")
