"""What trains: the device, and the number format that it multiplies fast.  Knows nothing of models."""

from __future__ import annotations

from functools import cache

import torch

from service.engine.device import pick_device, pick_dtype


@cache
def device() -> torch.device:
    """CUDA where there is one."""
    return pick_device()


def fast_dtype() -> torch.dtype:
    """bf16 where the hardware multiplies it, else fp32: emulated bf16 is hundreds of times slower, and fp16 needs its gradients scaled."""
    picked = pick_dtype(device())
    return picked if picked is torch.bfloat16 else torch.float32


def mixed() -> torch.autocast:
    """A block in which networks compute in the fast format."""
    dtype = fast_dtype()
    return torch.autocast(device().type, dtype, enabled=dtype is not torch.float32)
