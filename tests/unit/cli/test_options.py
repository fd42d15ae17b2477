"""Where a run's record goes if nobody says."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cli.options import default_runs

pytestmark = pytest.mark.unit


def test_the_record_of_a_submitted_job_survives_rays_copy_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_runs() == Path("runs")
    copied = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    assert default_runs() == Path.home() / "shoal-runs"
