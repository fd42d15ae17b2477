from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.cli import machine, software
from shoal.cli.checks import Check, ask_child, collect
from shoal.cli.doctor import doctor

pytestmark = pytest.mark.unit


def one(checks: object, name: str) -> Check:
    found = [c for c in checks if c.name == name]  # type: ignore[attr-defined]
    assert len(found) == 1, found
    return found[0]


def test_a_probe_that_fails_says_why_and_stops_nothing() -> None:
    def broken() -> list[Check]:
        raise OSError("no such device")

    (check,) = collect("gpu", broken)
    assert (check.name, check.status) == ("gpu", "slow")
    assert "OSError: no such device" in check.found


def test_the_container_counts_not_the_machine(tmp_path: Path) -> None:
    assert machine.cgroup_cpus(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.cgroup_cpus(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cgroup_cpus(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cgroup_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert machine.cgroup_memory(tmp_path) == 1 << 30


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.cgroup_cpus(tmp_path) == 0.5
    assert machine.cgroup_memory(tmp_path) is None


def test_a_runs_folder_that_cannot_be_fails(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    check = one(machine.disk(tmp_path / "runs" / "here"), "runs")
    assert check.status == "fails"
    assert "--runs elsewhere" in check.remedy
    assert not list(tmp_path.glob("*/*"))


def test_a_runs_folder_is_not_made_by_looking(tmp_path: Path) -> None:
    assert one(machine.disk(tmp_path / "a" / "b"), "runs").status == "ok"
    assert not list(tmp_path.iterdir())


def test_shared_memory_that_is_missing_or_small(tmp_path: Path) -> None:
    assert one(machine.shared_memory(tmp_path), "shared memory").status in ("ok", "slow")
    if sys.platform == "linux":
        assert one(machine.shared_memory(tmp_path / "none"), "shared memory").status == "slow"


def test_a_package_named_platform_is_found(tmp_path: Path) -> None:
    assert not list(machine.shadowed_platform(tmp_path))
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "__init__.py").touch()
    check = one(machine.shadowed_platform(tmp_path), "platform")
    assert check.status == "fails"
    assert str(tmp_path) in check.found


def test_versions_are_compared_with_the_packages_own_ranges() -> None:
    ranges = software.tested_ranges()
    assert {"torch", "ray", "mlflow", "deepspeed"} <= set(ranges)
    checks = list(software.packages())
    assert {c.status for c in checks} == {"ok"}, "the development environment is the tested one"
    assert one(software.python(), "python").status == "ok"


def test_a_cluster_that_does_not_answer_fails_soon_and_says_where_the_address_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = one(software.ray_cluster("127.0.0.1:1"), "cluster")
    assert check.status == "fails"
    assert "--address=127.0.0.1:1" in check.found
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "RAY_ADDRESS=127.0.0.1:1" in one(software.ray_cluster(None), "cluster").found
    monkeypatch.delenv("RAY_ADDRESS")
    assert one(software.ray_cluster(None), "cluster").status == "ok"


def test_gloo_forms_a_group_here() -> None:
    assert one(software.collectives(), "gloo").status == "ok"


def test_a_child_that_hangs_or_fails_is_an_answer() -> None:
    with pytest.raises(RuntimeError, match="no answer within"):
        ask_child("import time; time.sleep(60)", timeout_s=0.3)
    with pytest.raises(RuntimeError, match="it broke"):
        ask_child("import sys; sys.exit('it broke')", timeout_s=30)
    assert ask_child("import sys; print('noise'); print(sys.argv[1])", "[1]", timeout_s=30) == [1]


def test_something_that_would_fail_gives_exit_code_1(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    result = CliRunner().invoke(doctor, ["--runs", str(blocked / "runs"), "--address", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "would fail here" in result.output


def test_json_lines(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "shoal", "doctor", "--json", "--runs", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    checks = [json.loads(line) for line in child.stdout.splitlines()]
    assert {"python", "torch", "cpu", "memory", "gloo", "deepspeed ops", "cluster"} <= {c["name"] for c in checks}
    worst = {c["status"] for c in checks}
    assert worst <= {"ok", "slow", "fails"}
    assert child.returncode == (1 if "fails" in worst else 0)
