"""The one place where environment variables of Shoal are declared.

They say where things are, never what a run does: that is the job's business alone. `tests/unit/test_ratchets.py`
refuses any other `SHOAL_*` name in the package.
"""

from __future__ import annotations

RUNS = "SHOAL_RUNS"

VARIABLES: dict[str, str] = {
    RUNS: "Folder that holds the runs, without --runs. Default: ./runs; in a submitted Ray job ~/shoal-runs.",
}
