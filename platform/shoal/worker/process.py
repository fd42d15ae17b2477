"""What belongs to a worker's process and not to a run: torch, its settings, memory that is given back in between."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from shoal.worker.outfit import Kind


class Process:
    """This process, made ready for one kind of runs. Make it before torch is imported: some of it is read there."""

    def __init__(self, kind: Kind) -> None:
        from shoal.engines.determinism import prepare_process

        prepare_process(kind.numerics, kind.threads)
        import torch

        self.kind = kind
        self.device = torch.device("cuda", 0) if kind.gpu else torch.device("cpu")
        if kind.gpu:
            torch.cuda.set_device(self.device)
        self.loaded: dict[str, str] = {}
        """Digests of the modules that it goes on with (`worker.identity.note_modules`)."""
        self._folder = os.getcwd()
        self._settings = [(put, get()) for get, put in _settings()]

    def import_engines(self, *, sharded: bool) -> None:
        """Import what a view needs, and DeepSpeed for a sharded engine."""
        import shoal.worker.life  # noqa: F401
        from shoal.engines.factory import import_sharded

        if sharded:
            import_sharded(self.device)

    def clean(self) -> None:
        """After a run: its memory is given back, and torch's settings are what they were, whatever the user's code has
        set. Raises if the device cannot be used any more."""
        from shoal.engines.garbage import collect
        from shoal.worker.identity import note_modules

        note_modules(self.loaded)
        compiler = sys.modules.get("torch._dynamo")
        if compiler is not None:
            compiler.reset()  # compiled code holds the models that it was made for
        for put, value in self._settings:
            put(value)
        os.chdir(self._folder)
        collect(everything=True, settle=True)  # the next run's own garbage is then soon found
        if self.kind.gpu:
            import torch

            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


def _settings() -> list[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """Ways to read and to set what torch keeps for the whole process and a task may change."""
    import torch

    backends: list[tuple[Any, str]] = [
        (torch.backends.cuda.matmul, "allow_tf32"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "deterministic"),
        (torch.backends.cudnn, "enabled"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ]
    attributes = [(lambda o=o, n=n: getattr(o, n), lambda v, o=o, n=n: setattr(o, n, v)) for o, n in backends]
    return [
        *attributes,
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    ]
