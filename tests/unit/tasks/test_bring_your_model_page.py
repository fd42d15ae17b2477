"""The page that people copy from works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[3] / "docs" / "bring_your_model.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def test_an_own_model_takes_at_most_fifteen_lines(tmp_path: Path) -> None:
    recipe = tmp_path / "regression.py"
    recipe.write_text(BLOCKS[0] + BLOCKS[1])
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 15
    job = load_recipe(recipe).job
    model = job.task.build()
    batch = {"x": torch.randn(4, 12), "y": torch.randn(4, 1)}
    assert set(job.task.columns) == set(batch)
    job.task.loss(model, batch).backward()


def test_its_dataclass_can_be_set(tmp_path: Path) -> None:
    recipe = tmp_path / "regression.py"
    recipe.write_text(BLOCKS[0] + BLOCKS[1] + BLOCKS[0].split("\n")[-2].replace("Regression()", "Wider()"))
    job = apply(load_recipe(recipe).job, ["task.width=8"])
    assert next(iter(job.task.build().parameters())).shape == (8, 12)


def test_the_hugging_face_example_builds(tmp_path: Path) -> None:
    recipe = tmp_path / "llama.py"
    recipe.write_text(next(b for b in BLOCKS if "HuggingFaceLM" in b))
    job = apply(load_recipe(recipe).job, ["task.model.hidden_size=32"])
    assert job.task.build().config.hidden_size == 32  # type: ignore[union-attr]
    job.task.check_data({"tokens": (job.data.block,)}, {"vocabulary": 256})


def test_the_side_by_side_job_is_valid() -> None:
    import shoal

    after = next(b for b in BLOCKS if "shoal.train(" in b)
    scope: dict[str, object] = {"shoal": shoal}
    exec(BLOCKS[0].split("job =")[0] + after.split("result =")[0], scope)
    assert isinstance(scope["job"], shoal.Job)
