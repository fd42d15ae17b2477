"""The recipes that come with Shoal load, and their jobs are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.job.recipe import load_recipe

pytestmark = pytest.mark.unit

JOBS = Path(__file__).parents[3] / "jobs"


@pytest.mark.parametrize("recipe", sorted(JOBS.glob("*.py")), ids=lambda p: p.stem)
def test_recipe(recipe: Path) -> None:
    job = load_recipe(recipe).job
    assert job.name == recipe.stem
    assert f"`{recipe.name}`" in (JOBS / "README.md").read_text()


def test_the_blocks_of_the_language_model_fit_its_context() -> None:
    job = load_recipe(JOBS / "gpt.py").job
    assert job.data.block == job.task.context + 1  # type: ignore[attr-defined]
    job.task.check_data({"tokens": (job.data.block,)}, {"vocabulary": 256, "bytes_per_token": 1.0})
