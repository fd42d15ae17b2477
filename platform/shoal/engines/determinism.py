"""What a process must be told, before and after torch is imported, so that equal inputs give equal bits.

Kernels are free to choose their order of adding by what should not matter: how memory is aligned, how many threads are
free at the moment, which algorithm won a race at start-up. Everything that decides such a choice is set here.
"""

from __future__ import annotations

import os
from typing import Literal

from shoal.errors import ConfigError

_FIXED = {
    # One thread more or less divides a sum differently.
    "OMP_DYNAMIC": "FALSE",
    "MKL_DYNAMIC": "FALSE",
}
_DEFAULTS = {
    # MKL's conditional numerical reproducibility: no choice by alignment. Costs nothing that could be measured. Who
    # wants another branch than the processor's best sets it, on all nodes alike.
    "MKL_CBWR": "AUTO",
    # cuBLAS: one workspace per stream, so that streams do not share and wait for each other in varying order.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def prepare_process(numerics: Literal["fast", "exact"], threads: int) -> None:
    """Make this process compute with `threads` threads, and for `exact` numerics in one way only.

    Call it once, before torch computes anything, best before it is imported: MKL reads its variables at its first call.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if numerics == "exact":
        os.environ.update(_FIXED)
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
    import torch

    torch.set_num_threads(threads)
    if numerics == "exact":
        torch.use_deterministic_algorithms(True)
        # It would also overwrite all memory that is new, in case somebody reads what was never written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # What torch has by default; NVIDIA_TF32_OVERRIDE and others may say otherwise on one node.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = True


def check_process() -> None:
    """Raise ConfigError unless `prepare_process("exact", ...)` was called."""
    import torch

    if not (torch.are_deterministic_algorithms_enabled() and "MKL_CBWR" in os.environ):
        raise ConfigError(
            "numerics=exact in a process that was not prepared for it: results would depend on how memory happens to "
            "be aligned; call shoal.engines.determinism.prepare_process('exact', threads) before anything is computed"
        )
