"""A look at it: the main job survives a kill, a join and a leave while it runs; then audit and verify say so.

python -m benchmarks.live [--steps 160] [--engine replicated | zero1 | zero2 | zero3]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from shoal.cli.display import PlainDisplay
from shoal.cli.main import run as shoal_command
from shoal.coordinator.status import MemberStatus, RunStatus
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe
from shoal.launch.api import RunOptions, run_job
from shoal.launch.supervise import find

RECIPE = Path(__file__).resolve().parents[1] / "jobs" / "gpt.py"
DEADLINE_S = 120.0


class Show(PlainDisplay):
    """The plain display, and somebody who kills a worker, lets its successor join, and sends one away."""

    def __init__(self) -> None:
        super().__init__()
        self._run_id = ""
        self._acting: threading.Thread | None = None

    def started(self, info: Mapping[str, Any]) -> None:
        super().started(info)
        self._run_id = info["run_id"]

    def status(self, status: RunStatus) -> None:
        super().status(status)
        if self._acting is None and status.phase == "training" and status.step >= 10:
            self._acting = threading.Thread(target=self._act, daemon=True)
            self._acting.start()

    def _act(self) -> None:
        coordinator = find(self._run_id)
        try:
            victim = self._members(coordinator)[-1]
            self.event("info", f"--- SIGKILL for worker {victim.member}, process {victim.pid}")
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            _until(lambda: victim.member not in [m.member for m in self._members(coordinator)])
            ray.get(coordinator.scale.remote(3, 3))
            self.event("info", "--- at least 3 workers are wanted: another one joins as soon as it is ready")
            _until(lambda: len(self._members(coordinator)) == 3)
            leaver = self._members(coordinator)[0]
            self.event("info", f"--- scaled to 2: the newest leaves at the next boundary, {leaver.member} stays")
            ray.get(coordinator.scale.remote(1, 2))
        except (ray.exceptions.RayError, TimeoutError) as error:
            self.event("warning", f"the show was cut short: {error}")

    def _members(self, coordinator: Any) -> list[MemberStatus]:
        return [m for m in ray.get(coordinator.members.remote()) if m.rank is not None]


def _until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not found():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--engine", default="replicated", choices=["replicated", "zero1", "zero2", "zero3"])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    overrides = [
        f"budget.steps={options.steps}",
        "numerics=exact",
        "workers.max=3",
        f"checkpoints.every={options.steps - 20}",
    ]
    if options.engine != "replicated":
        overrides += ["engine.name=zero", f"engine.stage={options.engine[-1]}"]
    recipe = load_recipe(str(RECIPE))
    job = replace(apply(recipe.job, overrides), name="churn")
    with Show() as show:
        outcome = run_job(
            job, options=RunOptions(runs_dir=options.runs, recipe=recipe, overrides=tuple(overrides)), display=show
        )
    if outcome.exit_code:
        return outcome.exit_code
    runs = ["--runs", str(options.runs)]
    print(f"\n$ shoal audit {outcome.run_id}", flush=True)
    code = shoal_command(["audit", outcome.run_id, *runs])
    stretch = f"{options.steps - 19}:{options.steps}"
    print(f"\n$ shoal verify {outcome.run_id} --steps {stretch} --workers 1", flush=True)
    return code or shoal_command(["verify", outcome.run_id, "--steps", stretch, "--workers", "1", *runs])


if __name__ == "__main__":
    sys.exit(main())
