"""What `exact` numerics expect of torch: an upgrade that breaks one of these shows here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from shoal.engines import make_engine
from shoal.engines.determinism import check_process
from shoal.engines.exact_zero import VECTOR
from shoal.errors import ConfigError
from shoal.job import Optimizer
from shoal.job.optimizers import RULES
from shoal.optim.optimizers import make_optimizer
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import make_job

pytestmark = pytest.mark.unit


EVERYWHERE = [Optimizer(name=name, lr=0.1) for name, rule in RULES.items() if not rule.needs]  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", EVERYWHERE, ids=lambda spec: spec.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_element_is_updated_alike_wherever_a_padded_vector_is_cut(spec: Optimizer, threads: int) -> None:
    count = 700 * VECTOR
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = updated(spec, (0, count), count)
        for cut in (VECTOR, 3 * VECTOR, 333 * VECTOR, 699 * VECTOR):
            assert torch.equal(torch.cat([updated(spec, (0, cut), count), updated(spec, (cut, count), count)]), whole)
    finally:
        torch.set_num_threads(before)


def updated(spec: Optimizer, part: tuple[int, int], count: int) -> torch.Tensor:
    """Elements of `part` after three updates of a vector of `count`, of which only that part exists."""
    random = torch.Generator().manual_seed(0)
    values, *gradients = (torch.randn(count, generator=random)[slice(*part)].clone() for _ in range(4))
    parameter = torch.nn.Parameter(values)
    optimizer = make_optimizer(spec, [("x", parameter)], torch.device("cpu"))
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach()


def test_exact_numerics_are_refused_where_they_cannot_be_kept() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ConfigError, match="not prepared"):
        check_process()
    with pytest.raises(ConfigError, match="prepare_process"):
        make_engine(make_job(tasks.Regression(), "replicated", numerics="exact"), torch.device("cpu"))


def test_a_prepared_process_has_everything_set() -> None:
    code = """
import os, sys
from shoal.engines.determinism import check_process, prepare_process
assert "torch" not in sys.modules, "what MKL reads must be there before"
prepare_process("exact", threads=2)
import torch
check_process()
assert torch.get_num_threads() == 2
assert torch.are_deterministic_algorithms_enabled()
assert os.environ["MKL_CBWR"] == "AUTO" and os.environ["OMP_NUM_THREADS"] == "2"
prepare_process("fast", threads=1)
assert torch.get_num_threads() == 1
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


def test_the_number_of_the_arithmetic_tells_processors_apart() -> None:
    code = "import torch; from shoal.engines.arithmetic import arithmetic; print(arithmetic(torch.device('cpu')))"

    def number(**variables: str) -> str:
        child = subprocess.run(
            [sys.executable, "-c", "import torch; torch.set_num_threads(1); " + code],
            env={**os.environ, "MKL_CBWR": "AUTO", **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        return child.stdout.strip()

    here = number()
    assert len(here) == 16
    assert number() == here
    assert number(ATEN_CPU_CAPABILITY="default", MKL_CBWR="COMPATIBLE") != here
