"""The transforms that docs/transforms.md shows work as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from shoal.data.pipeline import plans, read_samples
from shoal.data.sources import resolve
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe
from tests.support.transforms import text_of, write_texts

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[3] / "docs" / "transforms.md"


def test_own_transforms_from_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "transforms=" in b]
    Path("hidden.py").write_text(block)
    write_texts(Path("texts"), 40)
    write_texts(Path("held_out"), 20)
    job = apply(load_recipe("hidden.py").job, ["data.window=64"])
    sources = resolve(job.data, tmp_path, tuple(job.task.columns))
    job.task.check_data({c.name: c.shape for c in sources.train.columns}, sources.train.metadata)

    (catalog,) = sources.train.catalogs
    order = catalog.order(seed=0, shuffle=False)
    (samples,) = [s for task in plans(catalog, order, 0, 40) for s in read_samples(catalog, 0, task)]
    assert bytes(samples["tokens"][7].astype(np.uint8)).rstrip(b"\0") == text_of(7).encode()
    hidden = samples["inputs"] != samples["tokens"]
    assert (samples["inputs"][hidden] == 255).all()
    assert 0.12 < hidden.mean() < 0.18
