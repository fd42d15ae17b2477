"""Ray Train's elastic training (`ScalingConfig(num_workers=(1, 4))`)."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from benchmarks.churn.arms.base import Arm, Setup
from benchmarks.churn.eventlog import read_log
from benchmarks.churn.loop import Loop, read_checkpoint, train, write_checkpoint
from benchmarks.churn.nodes import Nodes
from benchmarks.churn.workload import Workload
from shoal.ray_compat import LOCAL_SETTINGS

QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
ON_NODES = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
"""After the loss of a node the first start waits for a place that is gone; by default for 60 s. Only there: where many
processes start on few cores, a start may itself take longer than that."""
LOOKS_EVERY_S = 1.0


class RayTrain(Arm):
    """Its users' loop: DDP, and a checkpoint by `ray.train.report` every k steps.

    It learns of places by nodes alone. Where the changes come one by one, they are Ray nodes (`Nodes`). On a fast
    trace two cores could not start one raylet after another beside the training, so there it has all its places on one
    node, all the time, and only the losses are played: of its processes. That is better than what the trace gives.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        nodes = setup.schedule.settled
        environment = {**QUICK, **ON_NODES} if nodes else QUICK
        self.settings = {
            "checkpoint every": f"{setup.every} steps",
            "elastic_resize_monitor_interval_s": LOOKS_EVERY_S,
            **environment,
        }
        os.environ.update(environment)
        self.nodes = Nodes(setup.schedule.first, environment) if nodes else None
        self.most = setup.most if setup.schedule.actions else len(setup.schedule.first)
        if self.nodes is not None:
            self.exit.callback(self.nodes.close)
        else:
            os.environ.update(LOCAL_SETTINGS)
            ray.init(
                address="local", num_cpus=self.most + 1, resources={"slot": self.most}, include_dashboard=False,
                log_to_driver=False, logging_level="ERROR",
            )  # fmt: skip
            self.exit.callback(ray.shutdown)

    @property
    def begins_with(self) -> int:
        return len(self.setup.schedule.first) if self.nodes is not None else self.most

    def train(self, conduct: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._fit, daemon=True)
        thread.start()
        threading.Thread(target=conduct, daemon=True).start()
        while thread.is_alive() and not self.setup.stop.is_set():
            thread.join(0.1)

    def join(self, slot: str) -> None:
        if self.nodes is not None:
            self.nodes.join(slot)

    def kill(self, slot: str) -> None:
        if self.nodes is not None:
            self.nodes.kill(slot)
        elif pids := self.pids():
            os.kill(pids[zlib.crc32(slot.encode()) % len(pids)], signal.SIGKILL)

    def leave(self, slot: str) -> None:
        assert self.nodes is not None, "a place cannot be announced to go where there are no nodes"
        self.nodes.leave(slot)

    def pids(self) -> list[int]:
        begun = {e["pid"] for e in read_log(self.setup.folder) if e["kind"] == "begun"}
        return sorted(p for p in begun if psutil.pid_exists(p))

    def _fit(self) -> None:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        setup = self.setup
        trainer = TorchTrainer(
            _loop,
            train_loop_config={
                "workload": setup.workload.as_dict(),
                "folder": str(setup.folder),
                "tokens": str(setup.tokens),
                "every": setup.every,
            },
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=(1, self.most),
                resources_per_worker={"CPU": 1, "slot": 1},
                elastic_resize_monitor_interval_s=LOOKS_EVERY_S,
            ),
            run_config=RunConfig(
                name="train",
                storage_path=str(setup.folder),
                failure_config=FailureConfig(max_failures=-1),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        trainer.fit()


def _loop(config: dict[str, Any]) -> None:
    """In each of Ray Train's workers."""
    context = ray.train.get_context()
    rank, begun = context.get_world_rank(), ray.train.get_checkpoint()
    workload = Workload(**config["workload"])
    state = None
    if begun is not None:
        with begun.as_directory() as folder:
            state = read_checkpoint(Path(folder))

    def save(steps: int, whole: Callable[[], dict[str, Any]], now: bool) -> None:
        if not now and steps % config["every"]:
            return
        if rank:
            ray.train.report({"step": steps})
            return
        with tempfile.TemporaryDirectory() as temporary:
            write_checkpoint(Path(temporary), whole())
            ray.train.report({"step": steps}, checkpoint=ray.train.Checkpoint.from_directory(temporary))

    view = f"{os.getpid()}"
    loop = Loop(workload, Path(config["folder"]), Path(config["tokens"]), view)
    train(loop, state, save)
