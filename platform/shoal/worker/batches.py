"""From columns of samples to tensors on a device."""

from __future__ import annotations

import numpy as np
import torch


def to_device(samples: dict[str, np.ndarray], low: int, high: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Samples [low, high) as tensors on `device`; host memory is shared where the device is the host."""
    rows = {name: torch.from_numpy(column[low:high]) for name, column in samples.items()}
    if device.type == "cpu":
        return rows
    return {name: column.pin_memory().to(device, non_blocking=True) for name, column in rows.items()}
