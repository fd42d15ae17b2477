"""Frees what a view leaves behind without searching the whole process for it each time."""

from __future__ import annotations

import gc


def collect(*, everything: bool = False, settle: bool = False) -> None:
    """Free objects that refer to each other in circles, as what wraps a model for a view does: hooks, buckets.

    `settle`: then take what is left out of the collector's sight: modules, the model, the job. Each later call, and
    each that DeepSpeed makes while it forms, looks only at what is new since: milliseconds. What was taken out is
    still freed when nothing refers to it any more; a circle among such objects, when `everything` is looked at, which
    takes a fifth of a second once DeepSpeed is imported.
    """
    if everything:
        gc.unfreeze()
    gc.collect()
    if settle:
        gc.freeze()
