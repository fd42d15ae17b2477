"""What an engine says to a task that does not keep its side; alone in a view, without a process group."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import nn

from shoal.engines import make_engine
from shoal.engines.factory import build_model, model_facts
from shoal.engines.task_module import from_collective
from shoal.errors import CheckpointError, ConfigError, TaskError
from shoal.job import Job, Optimizer
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import EXACT, difference, make_job
from tests.support.engine_runs import plain, reader, rows, train

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def alone(job: Job) -> Any:
    engine = make_engine(job, CPU)
    engine.form(0, 1)
    return engine


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("vector", r"shape \[4, 1\], not a scalar.*mean"),
        ("number", "returned float, not a Tensor"),
        ("detached", "does not depend on any trainable parameter"),
        ("integer", "dtype torch.int64"),
        ("raises", "KeyError: 'no such column'"),
    ],
)
def test_a_wrong_loss_is_a_task_error(what: str, said: str) -> None:
    engine = alone(make_job(tasks.Failing(what=what), "replicated"))
    with pytest.raises(TaskError, match=said) as caught:
        engine.micro_step(rows(0, 4), 1.0, last=True)
    if what == "raises":
        text = str(caught.value)
        assert "engine_tasks.py" in text
        assert "shoal/engines" not in text, "the traceback begins in the user's code"


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("mine")


class BadBackward(tasks.Regression):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return _Backward.apply(super().loss(model, batch))


class BadGraph(tasks.Regression):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        hidden = torch.sigmoid(model(batch["x"]))
        loss = hidden.square().mean()
        hidden.detach().add_(1)
        return loss


@pytest.mark.parametrize(("task", "said"), [(BadBackward(), "mine"), (BadGraph(), "inplace operation")])
def test_a_failing_backward_pass_is_a_task_error(task: tasks.Regression, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        alone(make_job(task, "replicated")).micro_step(rows(0, 4), 1.0, last=True)


class NoModule(tasks.Regression):
    def build(self) -> Any:
        return "a model"


class BadBuild(tasks.Regression):
    def build(self) -> Any:
        raise RuntimeError("out of ideas")


class IntegerParameter(tasks.Regression):
    def build(self) -> nn.Module:
        model = super().build()
        model.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
        return model


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (NoModule(), "returned str; return a torch.nn.Module"),
        (BadBuild(), "out of ideas"),
        (IntegerParameter(), "parameter table has dtype torch.int64"),
    ],
)
def test_a_wrong_model_is_a_task_error(task: tasks.Regression, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        make_engine(make_job(task, "replicated"), CPU)


class Scores(tasks.Regression):
    answer: Any = None

    def evaluate(self, model: nn.Module, batch: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(("answer", "said"), [([1.0], "returned list"), ({"a": torch.ones(2)}, "'a' of shape \\[2\\]")])
def test_wrong_metrics_are_a_task_error(answer: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scores, "answer", answer)
    engine = alone(make_job(Scores(), "replicated"))
    with pytest.raises(TaskError, match=said):
        engine.evaluate(rows(0, 4))
    assert engine.model.training


def test_metrics_may_be_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scores, "answer", {"a": 2.5, "b": torch.tensor([3])})
    assert alone(make_job(Scores(), "replicated")).evaluate(rows(0, 4)) == {"a": 2.5, "b": 3.0}


def test_collective_failures_are_told_apart() -> None:
    with pytest.raises(ValueError, match="not been initialized") as raised:
        torch.distributed.barrier()
    assert from_collective(raised.value)
    assert from_collective(torch.distributed.DistBackendError("NCCL"))
    assert not from_collective(RuntimeError("gloo, says the user's own code"))


def test_half_precision_models_become_fp32() -> None:
    class Half(tasks.Regression):
        def build(self) -> nn.Module:
            return super().build().bfloat16()

    model = build_model(make_job(Half(), "replicated"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_digest_tells_models_apart() -> None:
    def facts(task: tasks.Task) -> dict[str, Any]:
        return model_facts(build_model(make_job(task, "replicated")))

    same, other = facts(tasks.Regression()), facts(tasks.Regression(width=22))
    assert same == facts(tasks.Regression())
    assert len(same["digest"]) == 64
    assert same["digest"] != other["digest"]
    assert same["parameters"][0] == ("0.weight", 21 * 12, (21, 12))
    tied = facts(tasks.Language())["parameters"]
    assert "head.weight" not in {name for name, _, _ in tied}, "tied parameters count once"


def test_activations_need_repeated_blocks() -> None:
    class Lone(tasks.Regression):
        def build(self) -> nn.Module:
            return nn.Linear(12, 1)

    with pytest.raises(ConfigError, match="checkpoint_activations=True needs repeated blocks"):
        make_engine(make_job(Lone(), "replicated", options={"checkpoint_activations": True}), CPU)


def test_deepspeed_missing_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "deepspeed":
            raise ModuleNotFoundError("No module named 'deepspeed'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'shoal\[zero\]'"):
        make_engine(make_job(tasks.Regression(), "zero2"), CPU)


def test_reset_is_the_beginning() -> None:
    job = make_job(tasks.Normalizing(), "replicated")
    kept: dict[str, Any] = {}
    first = train(kept, 0, 1, job, (0, 6))
    again = train(kept, 0, 1, job, (0, 6))
    assert difference(again.parameters, first.parameters) == 0
    assert first.norms == again.norms


def test_micro_limit_bounds_merged_passes() -> None:
    job = make_job(tasks.Regression(), "replicated")
    limited = Job(**{**{f: getattr(job, f) for f in job.__slots__}, "batch": type(job.batch)(size=24, micro_limit=7)})
    assert difference(train({}, 0, 1, limited, (0, 5)).parameters, plain(job, 5)[0]) < EXACT


def test_a_state_with_other_buffers_or_vectors_is_refused() -> None:
    adam = train({}, 0, 1, make_job(tasks.Normalizing(), "replicated"), (0, 2)).shard
    assert adam is not None
    engine = alone(make_job(tasks.Normalizing(), "replicated"))
    with pytest.raises(CheckpointError, match=r"missing .*running_mean"):
        engine.write_state(reader([adam]), adam.scalars, {})
    sgd = alone(make_job(tasks.Normalizing(), "replicated", optimizer=Optimizer(name="sgd")))
    with pytest.raises(KeyError, match="momentum_buffer"):
        sgd.write_state(reader([adam]), adam.scalars, adam.buffers)


def test_times_are_those_of_the_last_step() -> None:
    engine = alone(make_job(tasks.Regression(), "replicated"))
    for _ in range(2):
        engine.micro_step(rows(0, 12), 0.5, last=False)
        engine.micro_step(rows(12, 24), 0.5, last=True)
        engine.update(0.01)
        assert 0 < engine.times.compute_s < 5
        assert 0 <= engine.times.communicate_s < engine.times.compute_s + 1
        assert 0 < engine.times.update_s < 5
