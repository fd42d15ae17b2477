"""The feed on a real Ray: the order carried out, CPUs kept apart, failures that reach those who wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from shoal.data.catalog import Catalog, read_catalog
from shoal.data.feed import FeedPlan, start_feed
from shoal.data.order import Order
from shoal.data.reader import SliceReader
from shoal.data.reserving import find, reserve
from shoal.data.training import TrainingData
from shoal.errors import CapacityError, DataError
from shoal.job.spec import Data

pytestmark = pytest.mark.cluster

DEADLINE_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def cluster(no_cluster: None) -> Iterator[None]:
    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=300 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """4,000 samples of 1,030 bytes in 40 row groups of two files; `id` is the place in file order."""
    folder = tmp_path_factory.mktemp("data")
    for name, ids in (("a", np.arange(2500)), ("b", np.arange(2500, 4000))):
        x = np.repeat((ids % 251).astype(np.uint8), 1022)
        table = pa.table({"id": ids, "x": pa.FixedSizeListArray.from_arrays(pa.array(x), 1022)})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=100)
    return read_catalog(str(folder), ["id", "x"])


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    feeds = []

    def begin(train: Catalog, validation: Catalog | None = None, **options: Any) -> Any:
        data = Data(train=train.uri, **{k: options.pop(k) for k in ("window", "cpus", "ahead_mb") if k in options})
        values = {"seed": 3, "start": 0, "stop": 3 * train.samples, "validation_samples": 0, **options}
        values["reservation"] = reserve(data.cpus)
        plan = FeedPlan(train=TrainingData.of(train), validation=validation, data=data, block=1, **values)
        feeds.append((start_feed(plan), plan))
        return feeds[-1][0]

    yield begin
    for feed, plan in feeds:
        ray.get(feed.close.remote(), timeout=DEADLINE_S)
        ray.kill(feed)
        plan.reservation.give_back()
    until(lambda: ray.available_resources().get("CPU") == 3.0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.02)


def expected(catalog: Catalog, order: Order, start: int, stop: int) -> list[int]:
    first = np.cumsum([0] + [g.rows for g in catalog.groups])
    ids: list[int] = []
    for w in order.windows(start, stop):
        rows = np.concatenate([np.arange(first[g], first[g + 1]) for g in w.groups])
        p = w.permutation()
        ids += (rows if p is None else rows[p]).tolist()[max(0, start - w.start) : stop - w.start]
    return ids


def test_any_cursor_and_any_division_among_workers_give_the_same_samples(
    catalog: Catalog, start: Callable[..., Any]
) -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def __init__(self, feed: Any) -> None:
            self.reader = SliceReader(feed)

        def read(self, ranges: list[tuple[int, int]]) -> list[list[int]]:
            found = self.reader.read("train", ranges)
            for columns in found:
                assert columns["x"].shape[1:] == (1022,)
                assert (columns["x"] == (columns["id"] % 251)[:, None]).all()
                assert all(c.flags.writeable and c.flags.owndata for c in columns.values())
            return [c["id"].tolist() for c in found]

    begin, stop, batch = 3970, 9000, 50
    want = expected(catalog, catalog.order(seed=3, window=700), begin, stop)
    for members in (1, 3):
        feed = start(catalog, window=700, start=begin, stop=stop)
        workers = [Worker.remote(feed) for _ in range(members)]
        got: list[int] = []
        for low in range(begin, stop - batch + 1, 4 * batch):
            lows = [s for s in range(low, low + 4 * batch, batch) if s + batch <= stop]
            asked = [
                w.read.remote([(s + batch * r // members, s + batch * (r + 1) // members) for s in lows])
                for r, w in enumerate(workers)
            ]
            parts = ray.get(asked, timeout=DEADLINE_S)
            for i in range(len(lows)):
                for part in parts:
                    got += part[i]
            feed.release.remote("train", low)
        assert got == want[: len(got)]
        assert len(got) == 5000
        status = ray.get(feed.status.remote())["train"]
        assert status.produced >= stop
        ray.get(feed.close.remote())


def test_workers_cannot_starve_reading_and_reading_takes_nothing_from_workers(
    catalog: Catalog, start: Callable[..., Any]
) -> None:
    @ray.remote(num_cpus=1)
    class Worker:
        def read(self, feed: Any, low: int) -> int:
            return len(SliceReader(feed).read("train", [(low, low + 500)])[0]["id"])

    feed = start(catalog, cpus=1.0, window=500)
    workers = [Worker.remote() for _ in range(2)]
    assert ray.get([w.read.remote(feed, i * 500) for i, w in enumerate(workers)], timeout=DEADLINE_S) == [500, 500]
    until(lambda: ray.available_resources().get("CPU", 0) == 0)
    reader = SliceReader(feed)
    for low in range(1000, 3 * 4000, 500):
        assert len(reader.read("train", [(low, low + 500)])[0]["id"]) == 500
        feed.release.remote("train", low)
    for w in workers:
        ray.kill(w)


def test_cpus_that_are_not_to_be_had(catalog: Catalog, start: Callable[..., Any]) -> None:
    with pytest.raises(CapacityError, match=r"data\.cpus=8 could not be reserved.*cluster has 3 CPUs.*Lower"):
        reserve(8.0, timeout_s=0.5)
    node = ray.get_runtime_context().get_node_id()
    feed = start(catalog, cpus=2.5, node_id=node)
    assert len(SliceReader(feed).read("train", [(0, 10)])[0]["id"]) == 10
    with pytest.raises(CapacityError, match="the node that holds the data has 3 CPUs, and"):
        reserve(1.0, node_id=node, timeout_s=0.5)


def test_a_reservation_with_a_name_is_found_again_and_given_back() -> None:
    assert find("kept", 1.5) is None
    mine = reserve(1.5, name="kept")
    found = find("kept", 1.5)
    assert found is not None
    assert (found.cpus, found.task_cpus) == (mine.cpus, mine.task_cpus) == (1.5, 0.75)
    assert found.group is not None
    assert mine.group is not None
    assert found.group.id == mine.group.id
    found.give_back()
    mine.give_back()
    until(lambda: ray.available_resources().get("CPU") == 3.0)
    assert find("kept", 1.5) is None


def test_blocks_are_held_to_the_limit_and_a_large_request_passes(catalog: Catalog, start: Callable[..., Any]) -> None:
    feed = start(catalog, ahead_mb=1, window=200)

    def held() -> Any:
        return ray.get(feed.status.remote())["train"]

    until(lambda: held().held_bytes >= 1 << 19)
    assert held().held_bytes < 1 << 20
    reader = SliceReader(feed)
    assert len(reader.read("train", [(0, 5000)])[0]["id"]) == 5000, "five times the limit in one request"
    again = reader.read("train", [(4000, 4010)])[0]["id"]
    assert (again == reader.read("train", [(4000, 4010)])[0]["id"]).all(), "a rolled-back step comes again"
    ray.get(feed.release.remote("train", 5000))
    until(lambda: 1 << 19 <= held().held_bytes < 1 << 20)
    with pytest.raises(DataError, match="those before 5000 have been released"):
        SliceReader(feed).read("train", [(4000, 4010)])
    with pytest.raises(DataError, match="runs from 0 to 12000"):
        reader.read("train", [(11990, 12001)])
    with pytest.raises(DataError, match="no test stream; it has train"):
        reader.read("test", [(0, 1)])


def test_the_validation_stream_is_the_first_samples_in_file_order(catalog: Catalog, start: Callable[..., Any]) -> None:
    feed = start(catalog, catalog, validation_samples=1300, window=500)
    reader = SliceReader(feed)
    for _ in range(2):
        assert reader.read("validation", [(0, 1300)])[0]["id"].tolist() == list(range(1300))
    with pytest.raises(DataError, match="runs from 0 to 1300"):
        reader.read("validation", [(1299, 1301)])


def test_many_segments_join_without_a_seam(tmp_path: Path, start: Callable[..., Any]) -> None:
    pq.write_table(pa.table({"id": np.arange(90)}), tmp_path / "x.parquet", row_group_size=1)
    catalog = read_catalog(str(tmp_path))
    stop = 600  # one task per sample: more than two segments
    feed = start(catalog, window=1, stop=stop)
    got = SliceReader(feed, blocks=2).read("train", [(0, 250), (250, stop)])
    assert np.concatenate([g["id"] for g in got]).tolist() == expected(
        catalog, catalog.order(seed=3, window=1), 0, stop
    )


def test_a_failed_read_reaches_all_who_wait(tmp_path: Path, start: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"id": np.arange(100)}), tmp_path / f"{name}.parquet", row_group_size=50)
    catalog = read_catalog(str(tmp_path))
    (tmp_path / "b.parquet").unlink()
    feed = start(catalog, window=50)
    asked = [feed.locate.remote("train", [(0, 200)]) for _ in range(3)]
    for ref in asked:
        with pytest.raises(DataError, match=r"b\.parquet is gone"):
            ray.get(ref, timeout=DEADLINE_S)
    with pytest.raises(DataError, match=r"b\.parquet is gone, or is not on .*; keep the data on storage"):
        SliceReader(feed).read("train", [(0, 200)])
    assert "b.parquet is gone" in ray.get(feed.status.remote())["train"].error


def test_a_read_has_a_deadline(catalog: Catalog, start: Callable[..., Any]) -> None:
    feed = start(catalog, window=100)
    with pytest.raises(DataError, match=r"no samples of the train stream within 0\.01 s"):
        SliceReader(feed, timeout_s=0.01).read("train", [(0, 12000)])
