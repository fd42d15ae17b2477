"""DeepSpeed ZeRO, stages 1 to 3: the state is divided among the members of a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from shoal import deepspeed_compat as compat
from shoal.engines import optimizer_state
from shoal.engines.base import EngineBase
from shoal.engines.buffers import persistent_buffers
from shoal.engines.protocol import ReadState
from shoal.engines.whole_state import BUCKET, pack, slice_of, take_over, take_over_buffers
from shoal.job import Job
from shoal.optim import averaging
from shoal.optim.optimizers import make_optimizer, state_names
from shoal.state.layout import Extent, Shard, divide, offsets
from shoal.tasks.base import Batch

REDUCE_BUCKET = 50_000_000
"""Most elements in one reduction. DeepSpeed's default, 500 million, costs two gigabytes and overlaps nothing below that
size of model."""


class ZeroEngine(EngineBase):
    """ZeRO through `deepspeed.initialize`, with a torch optimizer, fp32 state and torch's own autocast.

    A view's DeepSpeed engine is made in `form` and torn down in `leave`; the module and its parameters are the same
    objects throughout, but `leave` lets go of the state: after the next `form`, `write_state` must follow.
    """

    def __init__(self, job: Job, model: nn.Module, device: torch.device) -> None:
        self._stage = job.engine.stage
        self._keep_casts = self._keep_casts and self._stage < 3
        super().__init__(job, model, device)
        self._deepspeed = compat.load(device)
        self._names = {p: name for name, p in self._parameters.items()}
        self._frozen = {name: p for name, p in self._parameters.items() if not p.requires_grad}
        self._engine: Any = None
        self._traces: compat.Traces | None = None
        self._pieces: list[compat.Piece] = []
        self._flats: list[torch.Tensor] = []
        self._stateless = False

    @property
    def equal_micro_batches(self) -> bool:
        """True from stage 2 on: every backward pass reduces gradients."""
        return self._stage >= 2

    @property
    def keeps_state(self) -> bool:
        """False: `leave` lets go of it."""
        return False

    def form(self, rank: int, size: int, bounds: Sequence[int] | None = None) -> None:
        """Enter a view (collective). A view of fresh members takes rank 0's weights."""
        fresh = self._enter(rank, size)
        where = torch.device("cpu") if self._job.engine.offload else self.device
        self._traces = compat.Traces(self._module)
        with compat.forming(hollow=not fresh):
            self._engine, *_ = self._deepspeed.initialize(
                model=self._module,
                optimizer=make_optimizer(self._job.optimizer, self._parameters.items(), where),
                config=self._config(),
                dist_init_required=False,
            )
        self._pieces = compat.pieces(self._engine, self._names)
        self._flats = compat.flat_partitions(self._engine)

    def _config(self) -> dict[str, Any]:
        options = self._job.engine
        trainable = sum(p.numel() for p in self._trainable)
        zero: dict[str, Any] = {
            "stage": self._stage,
            "reduce_bucket_size": min(REDUCE_BUCKET, trainable),
            # Its own linear layer does not keep a weight that was gathered and cast until the backward pass.
            # But it computes in another way than torch's, and so than the other engines.
            "memory_efficient_linear": self._stage == 3
            and options.precision == "bf16"
            and self._job.numerics == "fast",
        }
        if options.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only counts with it; ours differ in size
            "gradient_accumulation_steps": 1,  # boundaries are set by hand
            "gradient_clipping": self._job.optimizer.clip_norm or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's CPU optimizer needs no compiler
            "steps_per_print": None,
        }
        if self._stage < 3:
            config["gradient_allreduce_op"] = "sum"
        return config

    def leave(self) -> None:
        """Let go of the view and of the state."""
        engine, self._engine = self._engine, None
        compat.release(engine)
        if self._traces is not None:  # also after a forming that failed half-way
            self._traces.undo()
            self._stateless, self._fresh = True, False
        self._traces, self._pieces, self._flats, engine = None, [], [], None
        self._depart()

    def micro_step(
        self, batch: Batch, share: float, *, last: bool, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Forward and backward; returns the detached loss. Collective (stage 1: only if `last`). Raises TaskError."""
        begun = self._clock.mark()
        self._engine.set_gradient_accumulation_boundary(last)
        loss = self._run_shard(self._engine, batch, share, weights)
        # Stages 1 and 2 add up over members; stage 3 can only average.
        scale = share if self._stage < 3 else share * self._size
        scaled = loss * scale
        self._run_backward(lambda: self._engine.backward(scaled))
        self._end_norms(batch, scale)
        self._clock.end_pass(begun)
        return loss.detach()

    def update(self, lr: float) -> float:
        """Clip, apply, gather (collective). Returns the norm; infinity, and nothing is applied, if it is not finite."""
        assert not self._stateless, "after leave() and form(), write_state() must come before the first update()"
        begun = self._clock.mark()
        self._settle()
        self._engine.optimizer.set_lr(lr)
        self._engine.step()
        applied = self._engine.was_step_applied()
        norm = float(self._engine.get_global_grad_norm())
        self._parts = self._take_norms()
        compat.clear_gradients(self._engine)
        self._finish(applied=applied)
        self._clock.end_update(begun)
        return norm

    def _swap_average(self) -> None:
        averaging.swap(compat.torch_optimizer(self._engine), self._flats)
        compat.publish_partitions(self._engine)

    def holdings(self) -> tuple[Extent, ...]:
        """What DeepSpeed gave to this member's optimizer, and a part of the frozen parameters."""
        return self._trained_extents() + tuple(self._frozen_extents())

    def _trained_extents(self) -> tuple[Extent, ...]:
        return tuple(Extent(p.name, p.start, p.count) for p in self._pieces)

    def _frozen_extents(self) -> list[Extent]:
        if self._stage < 3:
            return list(divide([(name, p.numel()) for name, p in self._frozen.items()], self._rank, self._size))
        parts = {name: compat.frozen_partition(p) for name, p in self._frozen.items()}
        return [Extent(name, start, part.numel()) for name, (start, part) in parts.items() if part.numel()]

    def read_state(self) -> Shard:
        """A host copy of this member's holdings. Not collective."""
        extents = self.holdings()
        keys = ("param", *state_names(self._job.optimizer))
        tensors = {}
        for key in keys:
            live = self._live(key)
            tensors[key] = pack(extents, live.get, self.device)
        buffers = {name: b.detach().to("cpu", copy=True) for name, b in persistent_buffers(self.model).items()}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return Shard(extents, tensors, {"optimizer_step": self._applied}, buffers)

    def _live(self, key: str) -> dict[Extent, torch.Tensor]:
        """Extent -> live elements of `key` on this member, where there are any."""
        inner = compat.torch_optimizer(self._engine)
        if key != "param":
            vectors = [optimizer_state.vector(inner, flat, key) for flat in self._flats]
        else:
            vectors = [flat.detach() for flat in self._flats]
        out = {}
        for piece in self._pieces:
            vector = vectors[piece.flat]
            if vector is not None:
                out[Extent(piece.name, piece.start, piece.count)] = vector[piece.offset : piece.offset + piece.count]
        if key == "param":
            for extent in self._frozen_extents():
                parameter = self._frozen[extent.name]
                whole = self._stage < 3
                out[extent] = slice_of(parameter, extent) if whole else compat.frozen_partition(parameter)[1]
        return out

    def offered(self, part: int, parts: int) -> Shard:
        """Not here: raises RuntimeError."""
        raise RuntimeError("a sharded engine has no part of the state but its own; its members give their snapshots")

    def wanted(self) -> dict[str, tuple[Extent, ...]]:
        """This member's trained elements; frozen parameters whole, or at stage 3 its parts of them."""
        trained = self._trained_extents()
        frozen = (
            [Extent(name, 0, p.numel()) for name, p in self._frozen.items()]
            if self._stage < 3
            else self._frozen_extents()
        )
        return {"param": (*trained, *frozen), **dict.fromkeys(state_names(self._job.optimizer), trained)}

    def write_state(
        self, read: ReadState, scalars: dict[str, Any], buffers: dict[str, torch.Tensor], *, shared: bool = True
    ) -> None:
        """Take over a state (collective). Raises CheckpointError."""
        step = int(scalars["optimizer_step"])
        optimizer_state.prepare(compat.torch_optimizer(self._engine), self._job.optimizer, self._flats, step)
        for key in ("param", *(state_names(self._job.optimizer) if step else ())):
            mine = {e: v for e, v in self._live(key).items() if self._stage == 3 or e.name not in self._frozen}
            values = read(key, tuple(mine))
            for (extent, live), at in zip(mine.items(), offsets(mine), strict=True):
                live.copy_(values[at : at + extent.count])
        if self._stage < 3 and self._frozen:
            place = (self._rank, self._size) if shared else (0, 1)
            take_over(read, "param", dict(self._frozen), *place, self.device)
        compat.publish_partitions(self._engine)
        take_over_buffers(persistent_buffers(self.model), buffers)
        self._applied, self._fresh, self._stateless = step, False, False

    def reset(self) -> None:
        """Back to the initial weights, as freshly built. Only between views."""
        if self._stateless:
            self._rebuild()
            self._stateless = False

    def full_parameters(self) -> dict[str, torch.Tensor]:
        """All parameters, fp32, on the host of rank 0; empty elsewhere (collective)."""
        out: dict[str, torch.Tensor] = {}
        waiting: list[str] = []
        for name in self._parameters:
            waiting.append(name)
            if sum(compat.elements(self._parameters[n]) for n in waiting) >= BUCKET:
                self._collect(waiting, out)
                waiting = []
        self._collect(waiting, out)
        return out

    def _collect(self, names: list[str], out: dict[str, torch.Tensor]) -> None:
        with compat.gathered([self._parameters[name] for name in names]):
            if self._rank == 0:
                for name in names:
                    out[name] = self._parameters[name].detach().to("cpu", torch.float32, copy=True)
