"""One run of one arm, in a process of its own: `python -m benchmarks.churn.one SPEC.json`.

SPEC: arm, trace (a name that `schedule.schedule` knows), folder, cache, workload, every. Leaves `log-*.jsonl` and
`final.npy`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.churn.arms import make
from benchmarks.churn.arms.base import Arm, Setup, log_of, memory_of
from benchmarks.churn.eventlog import EventLog, read_log
from benchmarks.churn.player import play
from benchmarks.churn.schedule import schedule
from benchmarks.churn.workload import Workload
from benchmarks.common import machine

MEMORY_EVERY_S = 2.0
LONGEST_S = 160.0
"""An arm that has not done its steps by then is broken off; its log is kept."""
WORKERS = 4


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder, workload = Path(spec["folder"]), Workload(**spec["workload"])
    tokens = workload.written(Path(spec["cache"]))
    setup = Setup(workload, schedule(spec["trace"], WORKERS), folder, tokens, WORKERS, spec["every"])
    log = log_of(setup)
    begun = time.monotonic()
    late = threading.Timer(LONGEST_S, setup.stop.set)
    late.daemon = True
    late.start()
    with make(spec["arm"], setup) as arm:
        log(
            "run",
            arm=spec["arm"],
            trace=spec["trace"],
            steps=workload.steps,
            batch=workload.batch,
            load=os.getloadavg()[0],
            machine=machine(),
            settings=arm.settings,
            workload=workload.as_dict(),
        )
        threading.Thread(target=watch, args=(arm, log), daemon=True).start()
        arm.train(lambda: play(arm, log))
    done = read_log(folder)
    if not any(e["kind"] == "end" for e in done):
        log("end", steps=max((e["step"] for e in done if e["kind"] == "step"), default=0), digest="")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    log("over", seconds=time.monotonic() - begun, cpu_s=sum(u.ru_utime + u.ru_stime for u in used))
    os._exit(0)  # threads of libraries that were broken off in the middle


def watch(arm: Arm, log: EventLog) -> None:
    """How much memory the training processes have, now and then."""
    while not arm.setup.stop.wait(MEMORY_EVERY_S):
        pids = arm.pids()
        if pids:
            log("memory", bytes=memory_of(pids), processes=len(pids))


def spec_of(arm: str, trace: str, folder: Path, cache: Path, workload: Workload, every: int) -> dict[str, Any]:
    """What `main` reads."""
    return {
        "arm": arm,
        "trace": trace,
        "folder": str(folder),
        "cache": str(cache),
        "workload": workload.as_dict(),
        "every": every,
    }


if __name__ == "__main__":
    main()
