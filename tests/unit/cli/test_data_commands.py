"""`shoal data inspect`, `verify` and `order`, as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import shoal
from shoal.cli import main
from shoal.data.catalog import read_catalog
from shoal.data.shards import ShardWriter, write_manifest
from shoal.job.store import save_job
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import Ledger
from tests.support.bad_parquet import break_group, write
from tests.support.plain_task import Plain

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.data.groups.time.sleep", lambda s: None)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main.shoal, ["data", *map(str, arguments)])


def said(*arguments: object, code: int = 0) -> list[Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert main.run(["data", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def prepared(folder: Path) -> Path:
    splits = {}
    for split, text in (("train", b"a school of fish. " * 9), ("validation", b"a gull.\n")):
        writer = ShardWriter(folder / split, {"block": 8, "vocabulary": 256, "tokenizer": "bytes"})
        writer.add({"tokens": np.frombuffer(text, np.uint8)[: len(text) // 8 * 8].reshape(-1, 8)}, text_bytes=len(text))
        writer.close()
        splits[split] = {"samples": writer.samples, "digest": writer.digest, "documents": 2, "files": writer.files}
    write_manifest(folder, {"splits": splits})
    return folder


def test_inspect_shows_what_a_task_would_get(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "corpus")
    shown = run("inspect", folder, "--samples", 2, "--runs", tmp_path)
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert lines[0] == f"{folder}/train"
    assert "  row groups  1, of 20 to 20 rows" in lines
    assert "  columns     tokens  uint8 [8]" in lines
    assert any(line.startswith("  about       block 8, vocabulary 256, tokenizer bytes") for line in lines)
    assert "  prepared    documents 2" in lines
    assert "sample 0  (part-00000.parquet, row group 0, row 0)" in lines
    assert '  tokens  "a school"' in lines
    assert '  tokens  "a gull.\\n"' in lines
    train, validation = said("inspect", folder, "--runs", tmp_path)
    assert (train["split"], validation["split"]) == ("train", "validation")
    assert (train["samples"], train["sample_bytes"], train["files"]) == (20, 8, 1)
    assert train["digest"] == read_catalog(f"{folder}/train").digest
    assert train["shown"][0]["values"] == {"tokens": {"text": "a school"}}
    assert [s["index"] for s in train["shown"]] == [0, 6, 13]


def test_inspect_draws_pictures(tmp_path: Path) -> None:
    shown = run("inspect", "builtin:digits", "--samples", 1, "--runs", tmp_path).output
    assert "float32 [1, 8, 8]" in shown
    assert "classes 10" in shown
    assert "@" in shown
    assert "label  " in shown


def test_inspect_refuses_what_a_run_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data", {"a.parquet": 20})
    assert "no column 'idd'" in refused("inspect", tmp_path / "data", "--columns", "idd", capsys=capsys)
    assert "does not exist" in refused("inspect", tmp_path / "dada", capsys=capsys)
    assert "text" in run("inspect", tmp_path / "data").output, "columns that are no numbers are named, too"


def test_verify_says_what_is_good(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "corpus")
    result = run("verify", folder)
    assert result.exit_code == 0
    assert f"{folder}/train: good" in result.stdout.splitlines()
    assert "(of the content, computed again)" in result.stdout
    found = said("verify", folder)
    assert [(f["split"], f["good"], f["recomputed"]) for f in found] == [
        ("train", True, True),
        ("validation", True, True),
    ]


def test_verify_names_what_is_bad_and_leaves_it_out_when_asked(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"a.parquet": 45, "b.parquet": 30})
    break_group(folder / "a.parquet", 1)
    result = run("verify", folder)
    assert result.exit_code == 2
    assert f"{folder}: 1 problem" in result.stdout
    assert "  a.parquet, row group 1: " in result.stdout
    assert "--write-skip" in result.stdout
    (found,) = said("verify", folder, code=2)
    assert (found["good"], found["digest"]) == (False, None)
    assert [(p["file"], p["row_group"], p["rows"]) for p in found["problems"]] == [("a.parquet", 1, 10)]

    (found,) = said("verify", folder, "--write-skip")
    assert [(e["file"], e["row_group"]) for e in found["newly_left_out"]] == [("a.parquet", 1)]
    catalog = read_catalog(str(folder))
    assert (catalog.samples, catalog.digest) == (65, found["digest"])
    assert "left out    1 before, 10 samples" in run("verify", folder).stdout
    assert said("verify", folder)[0]["good"]
    shown = run("inspect", folder, "--samples", 0).output
    assert "left out    1 bad, 10 samples, by the list _skip.json" in shown


def test_what_cannot_be_left_out_stays_a_problem(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "corpus")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["digest"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    train, validation = said("verify", folder, "--write-skip", code=2)
    assert [p["file"] for p in train["problems"]] == ["manifest.json"]
    assert (train["digest"], validation["good"]) == (None, True)
    assert not (folder / "train" / "_skip.json").exists()


def test_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "data", {"a.parquet": 10})
    break_group(folder / "a.parquet", 0)
    assert "without a single row that is not left out" in refused(
        "verify", folder, "--write-skip", "--quiet", capsys=capsys
    )


def test_order_of_a_recipe(tmp_path: Path) -> None:
    recipe = ROOT / "jobs" / "digits.py"
    (found,) = said("order", recipe, "--step", 23, "--runs", tmp_path, "--set", "seed=5")
    assert found["positions"] == [22 * 64, 23 * 64]
    assert [s["positions"] for s in found["shards"]] == [[22 * 64 + 8 * i, 22 * 64 + 8 * i + 8] for i in range(8)]
    assert [at["epoch"] for s in found["shards"] for at in s["samples"]] == [1] * (1438 - 22 * 64) + [2] * (
        23 * 64 - 1438
    )
    (again,) = said("order", recipe, "--step", 23, "--runs", tmp_path, "--set", "seed=5", "--set", "workers.max=7")
    assert again == found, "workers make no difference"
    (other,) = said("order", recipe, "--step", 23, "--runs", tmp_path, "--set", "seed=6")
    assert other["shards"] != found["shards"]
    lines = run("order", recipe, "--step", 23, "--runs", tmp_path, "--set", "seed=5").output.splitlines()
    assert lines[0].startswith("step 23: positions 1408 to 1471 of the endless stream, from ")
    assert lines[2].split() == ["shard", "position", "epoch", "file", "row", "group", "row"]
    first = found["shards"][0]["samples"][0]
    assert lines[3].split() == ["0", "1408", "1", "part-00000.parquet", str(first["row_group"]), str(first["row"])]
    assert len(lines) == 3 + 64


def test_order_shows_the_candidates_while_samples_are_selected(tmp_path: Path) -> None:
    chosen = "data.selection=Selection(pool=1.5, until=0.5)"
    of = ("order", ROOT / "jobs" / "digits.py", "--runs", tmp_path, "--set", "budget.steps=20", "--set", chosen)
    (found,) = said(*of, "--step", 10)
    assert found["positions"] == [9 * 96, 10 * 96]
    assert found["selection"] == {"rule": "importance", "trained_on": 8, "of": 12}
    assert [len(s["samples"]) for s in found["shards"]] == [12] * 8
    shown = run(*of, "--step", 10).output.splitlines()[1]
    assert shown.startswith("selection by importance: these are the candidates; 8 of each shard's 12 are trained on")
    (after,) = said(*of, "--step", 11)
    assert (after["positions"], after["selection"]) == ([960, 960 + 64], None)
    assert "selection" not in run(*of, "--step", 11).output


def plain_run(tmp_path: Path) -> tuple[RunFolder, shoal.Job]:
    data = write(tmp_path / "data", {"a.parquet": 45, "b.parquet": 30})
    job = shoal.Job(
        name="plain", task=Plain(), data=shoal.Data(train=str(data), window=16),
        batch=shoal.Batch(size=8, virtual_shards=4), budget=shoal.Budget(steps=20), seed=3,
    )  # fmt: skip
    folder = RunFolder(tmp_path / "runs" / "plain-1")
    folder.path.mkdir(parents=True)
    folder.update(run_id="plain-1", name="plain", total_steps=20)
    save_job(folder, job, None)
    catalog = read_catalog(str(data), job.task.columns)
    ledger = Ledger(folder.ledger)
    reads = {"positions": [[1, 8]], "total_steps": 20}
    ledger.append([{"kind": "start", "samples": 75, "data_digest": catalog.digest, **reads}])
    ledger.close()
    return folder, job


def test_order_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, job = plain_run(tmp_path)
    runs = ("--runs", folder.root)
    (found,) = said("order", "plain-1", "--step", 7, *runs)
    assert said("order", folder.path, "--step", 7) == [found]
    catalog = read_catalog(job.data.train, job.task.columns)
    order = catalog.order(seed=3, window=16)
    want = [(catalog.groups[g].row_group, row) for g, row in map(order.sample, range(48, 56))]
    assert [(at["row_group"], at["row"]) for s in found["shards"] for at in s["samples"]] == want
    assert "--step 21 is beyond the budget of 20 steps" in refused(
        "order", "plain-1", "--step", 21, *runs, capsys=capsys
    )
    (other,) = said("order", "plain-1", "--step", 7, *runs, "--set", "seed=4")
    assert other["shards"] != found["shards"]
    write(tmp_path / "data", {"b.parquet": 31})
    message = refused("order", "plain-1", "--step", 7, *runs, capsys=capsys)
    assert "is not what run plain-1 is trained on: it has 76 samples" in message


def test_order_of_what_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run at" in refused("order", "nothing", "--step", 1, "--runs", tmp_path, capsys=capsys)
    assert "there is no recipe" in refused("order", "jobs/none.py", "--step", 1, "--runs", tmp_path, capsys=capsys)
    assert "Invalid value for '--step'" in refused("order", "x", "--step", 0, capsys=capsys)
