"""What a model must look like to be trained: one small class.

Importing this module does not import torch, so that a recipe loads in milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

Batch = dict[str, Any]
"""Column name -> Tensor of shape [samples, ...], on the engine's device."""


class Task:
    """Derive from this, define `build` and `loss`; the rest has defaults.

    Make it a frozen dataclass and its fields can be set from the command line (`--set task.width=256`).
    """

    columns: tuple[str, ...] = ()
    """Columns of the Parquet data that a batch must hold."""
    per_sample: bool = False
    """True promises that the loss is a plain mean over samples and that a sample's loss does not depend on its
    neighbours in the batch. Then virtual shards may share a forward pass, which is faster and changes nothing."""
    tokens_per_sample: int | None = None
    """For tokens/s in the record; None where the word makes no sense."""

    def check_data(self, columns: Mapping[str, tuple[int | None, ...]], about: Mapping[str, Any]) -> None:
        """Raise ConfigError or DataError if the data does not suit the task. Called before anything starts.

        `columns`: the shape of one sample by column (None: a length that only the data knows). `about`: what prepared
        data says of itself (`block`, `vocabulary`, `bytes_per_token`, `tokenizer`, `classes`), or nothing.
        """

    def build(self) -> nn.Module:
        """A new model with fresh weights. Called on every worker under the same random seed."""
        raise TypeError(f"{type(self).__name__} must define build(self) -> torch.nn.Module")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scalar training loss: the mean over the samples of `batch`."""
        if not self.tells_samples():
            raise TypeError(f"{type(self).__name__} must define loss(self, model, batch) -> scalar Tensor")
        return self.sample_losses(model, batch).mean()

    def sample_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of each sample, shape [samples], whose mean is the loss. Define it in the place of `loss`, or beside it,
        and mixtures tell each source's own loss."""
        raise TypeError(f"{type(self).__name__} does not define sample_losses(self, model, batch) -> Tensor [samples]")

    def tells_samples(self) -> bool:
        """Whether the task defines `sample_losses`."""
        return type(self).sample_losses is not Task.sample_losses

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalar metrics, each a mean over the samples of `batch`. Runs without gradients, in eval mode."""
        return {"loss": self.loss(model, batch)}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics of a whole evaluation from the means over all its samples: the place for derived ones."""
        return means

    def config(self, model: nn.Module) -> dict[str, Any]:
        """What `config.json` beside the exported weights says: enough to build the model again."""
        hf = getattr(model, "config", None)
        if hf is not None and hasattr(hf, "to_dict"):
            return hf.to_dict()
        return {"task": f"{type(self).__module__}.{type(self).__qualname__}"}
