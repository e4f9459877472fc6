"""Host numbers on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def indices(values: Sequence[int], device: torch.device) -> Tensor:
    """int64 on `device`. From page-locked memory, because a copy from ordinary memory would make the host wait for
    everything the device still has to do."""
    pinned = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)
