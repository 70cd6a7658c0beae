"""What trains: the device, the number format that it multiplies fast, and how many small kernels get there.  Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from service.engine.device import pick_device, pick_dtype


@cache
def device() -> torch.device:
    """CUDA where there is one, set up for shapes that stay the same."""
    picked = pick_device()
    if picked.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # the variances in MS-SSIM and SSIMULACRA2 are small differences of squares: ten bits would drown them
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return picked


def fast_dtype() -> torch.dtype:
    """bf16 where the hardware multiplies it, else fp32: emulated bf16 is hundreds of times slower, and fp16 needs its gradients scaled."""
    picked = pick_dtype(device())
    return picked if picked is torch.bfloat16 else torch.float32


def mixed() -> torch.autocast:
    """A block in which networks compute in the fast format."""
    dtype = fast_dtype()
    return torch.autocast(device().type, dtype, enabled=dtype is not torch.float32)


def captured(step: Callable[..., dict[str, torch.Tensor]], *examples: torch.Tensor) -> Callable[..., dict[str, torch.Tensor]]:
    """``step`` as one CUDA graph, so that its thousands of small kernels do not wait for Python; elsewhere ``step`` itself.

    Args:
        step: what is done with tensors shaped as ``examples``; it must not fetch anything from the device.
        examples: a first set of arguments; three trial runs see it.

    Returns:
        A function of such tensors on any device.  Its results lie in the same place every time: use them before the next call.
    """
    if device().type != "cuda":
        return step
    places = [example.to(device()).clone() for example in examples]
    trial = torch.cuda.Stream()
    trial.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(trial):
        for _ in range(3):
            step(*places)
    torch.cuda.current_stream().wait_stream(trial)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*places)

    def replay(*arguments: torch.Tensor) -> dict[str, torch.Tensor]:
        for place, argument in zip(places, arguments, strict=True):
            place.copy_(argument, non_blocking=True)
        graph.replay()
        return results

    return replay
