"""Overrides: text to values by the fields' types, all at once, and messages that name what was meant."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.job import Batch, Budget, Curriculum, Data, Engine, Job, Optimizer, Workers
from shoal.job.fields import flatten, leaves
from shoal.job.overrides import apply
from shoal.job.store import job_digest
from shoal.job.text_values import format_value, parse
from shoal.tasks.base import Task

if TYPE_CHECKING:
    from nowhere import Unknown

pytestmark = pytest.mark.unit


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    classes: int = 10
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Net(Task):
    width: int = 128
    rate: float = 0.1
    label: str | None = None
    color: Color = Color.RED
    head: Head = field(default_factory=Head)
    extra: Head | None = None
    config: dict[str, Any] = field(default_factory=dict)
    unknown: Unknown = 3
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd")

    def build(self):
        raise NotImplementedError

    def loss(self, model, batch):
        raise NotImplementedError


class Plain(Task):
    def __init__(self) -> None:
        self.width = 3

    def build(self):
        raise NotImplementedError

    def loss(self, model, batch):
        raise NotImplementedError


def a_job(task: Task | None = None, **values: Any) -> Job:
    return Job(**{"task": task or Net(), "data": Data(train="x"), "budget": Budget(steps=10), **values})


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optimizer.lr=3e-4", lambda j: j.optimizer.lr == 3e-4),
        ("optimizer.lr=1", lambda j: type(j.optimizer.lr) is float),
        ("optimizer.betas=0.8,0.99", lambda j: j.optimizer.betas == (0.8, 0.99)),
        ("optimizer.betas=(0.8, 0.99)", lambda j: j.optimizer.betas == (0.8, 0.99)),
        ("optimizer.clip_norm=none", lambda j: j.optimizer.clip_norm is None),
        ("optimizer.name=sgd", lambda j: j.optimizer.name == "sgd"),
        ("engine.stage=3", lambda j: j.engine.stage == 3),
        ("data.shuffle=no", lambda j: j.data.shuffle is False),
        ("data.validation=none", lambda j: j.data.validation is None),
        ("data.validation=s3://b/x?region=a=b", lambda j: j.data.validation == "s3://b/x?region=a=b"),
        ("workers.resources=tpu:1,disk:0.5", lambda j: j.workers.resources == (("tpu", 1.0), ("disk", 0.5))),
        ("workers.resources=()", lambda j: j.workers.resources == ()),
        ("workers.resources=", lambda j: j.workers.resources == ()),
        ("checkpoints.keep_best=-val/accuracy", lambda j: j.checkpoints.keep_best == "-val/accuracy"),
        ("budget.samples=1e6", lambda j: j.budget == Budget(samples=1_000_000)),
        ("budget.epochs=2", lambda j: j.budget == Budget(epochs=2.0)),
        ("seed=1_000", lambda j: j.seed == 1000),
        ("name=none", lambda j: j.name == "none"),
        (" task.width =256", lambda j: j.task.width == 256),
        ("task.color=BLUE", lambda j: j.task.color is Color.BLUE),
        ("task.color=b", lambda j: j.task.color is Color.BLUE),
        ("task.head.bias=off", lambda j: j.task.head == Head(bias=False)),
        ("task.sizes=5", lambda j: j.task.sizes == (5,)),
        ("task.unknown=4", lambda j: j.task.unknown == 4),
        ('task.config={"a": true}', lambda j: j.task.config == {"a": True}),
        ("task.label='none'", lambda j: j.task.label == "none"),
    ],
)
def test_values_are_read_by_the_type_of_their_field(override, read):
    assert read(apply(a_job(), [override]))


def test_dictionaries_have_parts_and_keep_the_others():
    job = apply(a_job(Net(config={"layers": 2, "act": "gelu"})), ["task.config.layers=4"])
    assert job.task.config == {"layers": 4, "act": "gelu"}
    with pytest.raises(ConfigError, match=r"no task\.config\.layer; did you mean task\.config\.layers\?"):
        apply(job, ["task.config.layer=1"])


def test_overrides_of_one_job_are_applied_together():
    job = a_job(batch=Batch(size=8, virtual_shards=4), workers=Workers(max=4))
    sets = ["batch.virtual_shards=32", "batch.size=96", "workers.min=6", "workers.max=12"]
    changed = apply(job, sets)
    assert (changed.batch.size, changed.workers.min, changed.workers.max) == (96, 6, 12)
    for last in range(len(sets)):
        with pytest.raises(ConfigError):
            apply(job, [sets[last]] if last != 1 else ["batch.size=97"])
    assert apply(a_job(), ["engine.offload=true", "engine.name=zero"]).engine == Engine(name="zero", offload=True)


def test_of_equal_names_the_last_counts_and_nothing_changes_nothing():
    job = a_job()
    assert apply(job, ["seed=1", "seed=2"]).seed == 2
    assert apply(job, []) is job


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.learning_rate=1"], r"no optimizer\.learning_rate.*optimizer has: name, lr, betas"),
        (["optimzer.lr=1"], r"no optimzer\.lr; did you mean optimizer\.lr\?.*A job has: task, data, budget"),
        (["lr=1"], r"did you mean optimizer\.lr\?"),
        (["batch.siz=1"], r"did you mean batch\.size\?"),
        (["optimizer.lr=fast"], r"optimizer\.lr='fast' is not a number"),
        (["workers.max=2.5"], r"workers\.max='2\.5' is not a whole number"),
        (["workers.max=1e400"], r"is not a whole number"),
        (["optimizer.lr=-1"], r"optimizer\.lr=-1\.0 must be more than 0"),
        (["optimizer.name=adamax"], r'is not one of sgd, adam, adamw, .*muon; did you mean "adam"'),
        (["numerics=exakt"], r"'exakt' is not one of fast, exact; did you mean \"exact\""),
        (["engine.stage=4"], r"engine\.stage='4' is not one of 1, 2, 3"),
        (["optimizer.betas=0.9"], r"optimizer\.betas='0\.9' is not 2 values with commas between"),
        (["optimizer.betas=0.9,x"], r"is not 2 values"),
        (["optimizer.clip_norm=big"], r"is not a number or none"),
        (["data.shuffle=maybe"], r"is not true or false"),
        (["optimizer=sgd"], r"optimizer is a group of values; set one of optimizer\.name, optimizer\.lr"),
        (["optimizer.lr"], r"is not name=value"),
        (["=3"], r"is not name=value"),
        (["seed.x=3"], r"seed is a single value"),
        (["task=Net"], r"task cannot be set as text"),
        (["task.width=31"], r"task\.width=31 is refused: ValueError: width 31 is odd"),
        (["task.wdth=32"], r"no task\.wdth; did you mean task\.width\?"),
        (["task.extra.classes=3"], r"task\.extra is empty"),
        (["task.color=green"], r"is not one of RED, BLUE"),
        (
            ["budget.steps=5", "budget.epochs=1"],
            r"exactly one of steps, samples, epochs, seconds, joules, dollars; got steps=5, epochs=1",
        ),
        (["budget.steps=none"], r"exactly one"),
        (["task.config={}", "task.config.a=1"], r"no task\.config\.a"),
    ],
)
def test_what_is_wrong_is_refused_with_value_reason_and_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply(a_job(), overrides)


def test_a_whole_dictionary_and_a_part_of_it_cannot_both_be_set():
    job = a_job(Net(config={"a": 1}))
    for sets in (['task.config={"b": 1}', "task.config.a=2"], ["task.config.a=2", 'task.config={"b": 1}']):
        with pytest.raises(ConfigError, match="both set"):
            apply(job, sets)


def test_a_task_that_is_no_dataclass_says_so():
    with pytest.raises(ConfigError, match=r"task Plain is no dataclass; decorate it"):
        apply(a_job(Plain()), ["task.width=4"])
    assert flatten(a_job(Plain()))["task.width"] == "3"


def test_a_local_dataclass_with_unresolvable_annotations_is_read_by_its_values():
    @dataclass(frozen=True)
    class Inner:
        depth: int = 1

    @dataclass(frozen=True)
    class Local(Net):
        inner: Inner = Inner()
        ratio: Optional[Inner] = None  # noqa: UP045 - people write it
        speed: Missing = 0.5  # noqa: F821

    job = apply(a_job(Local()), ["task.inner.depth=3", "task.speed=2"])
    assert (job.task.inner.depth, job.task.speed) == (3, 2.0)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
TYPES: list[tuple[Any, st.SearchStrategy]] = [
    (int, st.integers()),
    (float, st.floats(allow_nan=False)),
    (bool, st.booleans()),
    (str, st.text()),
    (str | None, st.none() | st.text()),
    (int | None, st.none() | st.integers()),
    (int | str, st.integers() | st.text()),
    (bool | int | float | None, st.none() | st.integers() | st.floats(allow_nan=False)),
    (Literal["a", 2, None], st.sampled_from(["a", 2, None])),
    (tuple[int, float, str], st.tuples(st.integers(), st.floats(allow_nan=False), st.text())),
    (tuple[str, ...], st.lists(st.text()).map(tuple)),
    (
        tuple[tuple[str, float], ...],
        st.lists(st.tuples(st.text(), FINITE)).map(tuple),
    ),
    (list[bool | None], st.lists(st.none() | st.booleans())),
    (dict[str, int], st.dictionaries(st.text(), st.integers())),
    (Color, st.sampled_from(Color)),
    # An infinite number has no text where anything may be meant: `inf` is a word there.
    (Any, st.none() | st.booleans() | st.integers() | st.text() | FINITE),
]


@given(st.data())
def test_text_turns_back_into_the_value(data):
    annotation, values = data.draw(st.sampled_from(TYPES))
    value = data.draw(values)
    back = parse(format_value(value, annotation), annotation, "x")
    assert back == value


def test_text_of_not_a_number_and_of_paths():
    assert math.isnan(parse(format_value(math.nan, float), float, "x"))
    assert parse("a/b", Path, "x") == Path("a/b")


@given(st.text(), st.sampled_from([t for t, _ in TYPES]))
def test_any_text_is_read_or_refused_by_name(text, annotation):
    refused = None
    try:
        parse(text, annotation, "some.field")
    except ConfigError as error:
        refused = str(error)
    assert refused is None or refused.startswith("some.field=")


def test_a_flattened_job_can_be_set_again_on_any_other():
    job = a_job(
        Net(width=64, label="none", head=Head(classes=2), config={"layers": 3}, sizes=()),
        optimizer=Optimizer(name="lion", clip_norm=None, betas=(0.5, 0.25), weight_decay=0.5),
        workers=Workers(max=3, resources=(("tpu", 2.0),)),
        budget=Budget(epochs=1.5),
    )
    flat = flatten(job)
    assert flat["task"] == "Net"
    assert flat["workers.resources"] == "tpu:2.0"
    assert flat["optimizer.clip_norm"] == "none"
    other = a_job(Net(config={"layers": 1}))
    assert apply(other, [f"{leaf.name}={flat[leaf.name]}" for leaf in leaves(job)]) == job


def test_an_optional_group_is_set_and_dropped_as_a_whole() -> None:
    plain = Job(task=Task(), data=Data(train="x"), budget=Budget(steps=3))
    easy = apply(plain, ["data.curriculum=Curriculum(difficulty='loss', until=0.3)"])
    assert easy.data.curriculum == Curriculum(difficulty="loss", until=0.3)
    root = apply(easy, ["data.curriculum.pacing=root"]).data.curriculum
    assert root == Curriculum(difficulty="loss", until=0.3, pacing="root")
    assert apply(easy, ["data.curriculum=none"]) == plain
    assert len({job_digest(j) for j in (plain, easy, apply(easy, ["data.curriculum.pacing=root"]))}) == 3
    with pytest.raises(ConfigError, match="is a group of values"):
        apply(plain, ["optimizer=none"])
