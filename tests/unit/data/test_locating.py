"""Which samples a step uses: the order that training carries out, place by place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
from shoal.audit.content import Reading
from shoal.data.catalog import read_catalog
from shoal.data.locating import Place, common_folder, locate, locate_step
from shoal.data.order import Order
from shoal.data.training import TrainingData
from shoal.job.sampling import Curriculum, Source
from shoal.positions import Positions
from tests.support.bad_parquet import write
from tests.support.plain_task import Plain

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"), {"a.parquet": 45, "b.parquet": 30})


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 120), st.integers(1, 100), st.booleans(), st.booleans(), st.integers(0, 9))
def test_the_same_as_the_order_says_of_each(
    folder: Path, start: int, count: int, window: int, shuffle: bool, replacement: bool, seed: int
) -> None:
    catalog = read_catalog(str(folder), ["id"])
    rows = tuple(g.rows for g in catalog.groups)
    order = Order(group_rows=rows, seed=seed, shuffle=shuffle, window=window, replacement=replacement and shuffle)
    found = list(locate(catalog, order, start, start + count))
    assert len(found) == count
    for position, (epoch, place) in zip(range(start, start + count), found, strict=True):
        group, row = order.sample(position)
        at = catalog.groups[group]
        assert (epoch, place) == (order.epoch_of(position), Place(catalog.files[at.file], at.row_group, row))


def job_on(data: shoal.Data, steps: int = 40) -> shoal.Job:
    batch = shoal.Batch(size=8, virtual_shards=4)
    return shoal.Job(task=Plain(), data=data, batch=batch, budget=shoal.Budget(steps=steps), seed=3)


@pytest.mark.parametrize("kind", ["plain", "mixture", "curriculum", "replacement"])
def test_the_same_samples_that_are_read(folder: Path, tmp_path: Path, kind: str) -> None:
    """Against the samples themselves, read as the audit reads them: `id` counts through both files."""
    write(tmp_path / "other", {"c.parquet": 35})
    data = {
        "plain": shoal.Data(train=str(folder), window=16),
        "mixture": shoal.Data(
            sources=(
                Source(name="one", train=str(folder)),
                Source(name="two", train=str(tmp_path / "other"), weight=2.0),
            ),
            window=16,
        ),
        "curriculum": shoal.Data(train=str(folder), window=16, curriculum=Curriculum(difficulty="id")),
        "replacement": shoal.Data(train=str(folder), window=16, replacement=True),
    }[kind]
    job = job_on(data)
    parts = [(s.name, s.train) for s in data.sources] or [("", data.train)]
    train = TrainingData(tuple(n for n, _ in parts), tuple(read_catalog(uri, ["id"]) for _, uri in parts))
    total = 40 * 8
    mixture = train.mixture(data, seed=job.seed, block=8, total=total)
    reading = Reading(train.catalogs, train.orders(data, mixture, seed=job.seed, total=total), mixture)
    firsts = {"a.parquet": 0, "b.parquet": 45, "c.parquet": 0}
    sources = set()
    for step, samples in enumerate(reading.slices(0, total, [8] * 40), 1):
        found = locate_step(job, train, step, Positions.even(8, 40))
        ids = [firsts[Path(at.place.file).name] + 10 * at.place.row_group + at.place.row for at in found]
        assert ids == samples["id"].tolist()
        assert [at.position for at in found] == list(range((step - 1) * 8, step * 8))
        sources |= {at.source for at in found}
        assert all((at.source == "two") == at.place.file.endswith("c.parquet") for at in found)
    assert sources == {name for name, _ in parts}


def test_epochs_count_from_one(folder: Path) -> None:
    train = TrainingData.of(read_catalog(str(folder), ["id"]))
    job = job_on(shoal.Data(train=str(folder)))
    assert {at.epoch for at in locate_step(job, train, 1, Positions.even(8, 40))} == {1}
    assert [at.epoch for at in locate_step(job, train, 10, Positions.even(8, 40))] == [1] * 3 + [2] * 5
    seen = [
        at.place
        for step in range(1, 11)
        for at in locate_step(job, train, step, Positions.even(8, 40))
        if at.epoch == 1
    ]
    assert len(seen) == len(set(seen)) == 75


def test_the_folder_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    write(tmp_path, {"x/a.parquet": 10})
    assert common_folder(read_catalog(str(tmp_path), ["id"])) == str(tmp_path / "x")
    write(tmp_path, {"y/a.parquet": 10})
    assert common_folder(read_catalog(str(tmp_path), ["id"])) == str(tmp_path)
