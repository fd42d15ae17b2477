"""Data that are damaged when a run begins, and other ones when it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import shoal
from shoal.audit.run import audit_run
from shoal.data.catalog import read_catalog
from shoal.data.corpora import digits as digits_corpus
from shoal.errors import DataError
from shoal.run_folder import RunFolder
from tests.support.bad_parquet import break_group
from tests.support.faults import Fault, Faulty
from tests.support.runs import commits, digits, ledger, run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

ROWS = 50


def test_what_cannot_be_read_is_left_out_and_changed_data_begin_a_new_run(tmp_path: Path) -> None:
    folder, runs = tmp_path / "images", tmp_path / "runs"
    folder.mkdir()
    images = pq.read_table(read_catalog(str(digits_corpus(tmp_path / "corpora") / "train")).files[0])
    pq.write_table(images, folder / "a.parquet", row_group_size=ROWS)
    whole = read_catalog(str(folder)).samples
    break_group(folder / "a.parquet", 1)

    slow = Faulty(faults=(Fault("slow", 0, 1, "forward"),), folder=str(tmp_path))  # or it is over before the stop
    parts: dict[str, Any] = {
        "data": shoal.Data(train=str(folder), cpus=0.5, window=64, on_bad="skip"),
        "budget": shoal.Budget(steps=30),
        "workers": shoal.Workers(min=1, max=1),
    }
    stopped, _ = run(digits(slow, **parts), runs, interrupt_at=5)
    assert (stopped.status, stopped.error) == ("stopped", None)
    assert ledger(stopped)[0]["samples"] == whole - ROWS
    assert (folder / "_skip.json").is_file()

    pq.write_table(images, folder / "b.parquet", row_group_size=ROWS)
    with pytest.raises(DataError, match=r"training data changed since .* in a new run: --new-data"):
        run(digits(slow, **parts), runs, resume=stopped.run_id)
    other, _ = run(digits(slow, **parts), runs, resume=stopped.run_id, new_data=True)
    assert (other.status, other.error) == ("finished", None)
    assert other.run_id != stopped.run_id
    assert ledger(other)[0]["samples"] == 2 * whole - ROWS
    assert [c["step"] for c in commits(other)] == list(range(stopped.step + 1, 31))
    found = audit_run(RunFolder(Path(other.folder)))
    assert found.clean, (found.faults, found.unproven)
