"""Frees what a view leaves behind without searching the whole process for it each time."""

from __future__ import annotations

import gc


def collect(*, everything: bool) -> None:
    """Free objects that refer to each other in circles, as what wraps a model for a view does: hooks, buckets, groups.

    With `everything` it looks at all there is (a fifth of a second once DeepSpeed is imported), then takes what is left
    out of the collector's sight: modules, the model, the job. Each call without it, and each that DeepSpeed makes while
    it forms, then looks at what is new since: milliseconds. What was taken out is still freed when nothing refers to
    it any more; a circle among such objects, when `everything` is looked at again.
    """
    if everything:
        gc.unfreeze()
    gc.collect()
    if everything:
        gc.freeze()
