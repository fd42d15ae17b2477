"""One process of the loop: `python -m benchmarks.churn.worker SPEC.json`, with RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT in its environment, as torchrun sets them.

SPEC: workload, folder, tokens, view, every (steps between two checkpoints, 0: none), graceful (SIGTERM to one makes all
save and end), engine (ddp, or zero1 to zero3 by DeepSpeed: without checkpoints).
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.churn.loop import Loop, read_checkpoint, train, write_checkpoint
from benchmarks.churn.workload import Workload


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    asked: list[int] = []
    if spec["graceful"]:
        signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    folder = Path(spec["folder"])
    view = os.environ.get("TORCHELASTIC_RESTART_COUNT", "") + ":" + os.environ["MASTER_PORT"]
    loop = Loop(Workload(**spec["workload"]), folder, Path(spec["tokens"]), spec["view"] or view)
    if spec["engine"] != "ddp":
        from benchmarks.churn.zero import train_zero

        train_zero(loop, int(spec["engine"][-1]))
        return
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))

    def save(steps: int, state: Any, now: bool) -> None:
        if dist.get_rank() == 0 and (now or steps % spec["every"] == 0):
            write_checkpoint(folder, state())

    train(
        loop,
        read_checkpoint(folder) if spec["every"] else None,
        save if spec["every"] else None,
        (lambda: bool(asked)) if spec["graceful"] else None,
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
