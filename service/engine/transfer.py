"""Ways to a device and back, and the clock of what it does there.  Knows nothing of networks.

A GPU works by itself: what it is given is put into its row, and the caller goes on.  So that it never waits, nothing between the first
copy to it and the last copy from it may wait for it, and the copies are made on streams of their own, by way of page-locked memory, while
it computes.  A processor does everything in the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Arrays = Array | Sequence[Array]
"""(N, ...), or N of one shape and dtype"""


class Transfer:
    """Copies to and from one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in = self._out = None
        if device.type == "cuda":
            self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def onto(self, arrays: Arrays) -> torch.Tensor:
        """Arrays to one tensor (N, ...) on the device.  On a processor, one array keeps its memory."""
        if self._in is None:
            return torch.from_numpy(arrays if isinstance(arrays, np.ndarray) else np.stack(arrays))
        dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        host = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=True)
        np.stack(list(arrays), out=host.numpy())
        with torch.cuda.stream(self._in):
            tensor = host.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._in)
        tensor.record_stream(computing)
        return tensor

    def back(self, tensor: torch.Tensor) -> Callable[[], Array]:
        """Begin to copy a tensor from the device; what is returned waits for that, and gives an array that is the caller's own."""
        if self._out is None:
            array: Array = tensor.numpy()
            return lambda: array
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            host.copy_(tensor, non_blocking=True)
            copied = torch.cuda.Event(blocking=True)  # a thread that waits for it sleeps
            copied.record()
        tensor.record_stream(self._out)

        def arrived() -> Array:
            copied.synchronize()
            return host.numpy()

        return arrived

    def laps(self) -> Laps:
        """Begin to measure."""
        return Laps(self._mark)

    def _mark(self) -> Any:
        """The moment when the device has done what it was given until now."""
        if self._in is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class Laps:
    """The time of stages that follow one another on a device; called with a stage's name when the last of it was given to the device."""

    def __init__(self, mark: Callable[[], Any]) -> None:
        self._mark, self._stages, self._marks = mark, list[str](), [mark()]

    def __call__(self, stage: str) -> None:
        self._stages.append(stage)
        self._marks.append(self._mark())

    def seconds(self) -> dict[str, float]:
        """Of each stage; to be asked when all of it has been waited for."""
        return {
            stage: later - earlier if isinstance(earlier, float) else earlier.elapsed_time(later) / 1e3
            for stage, (earlier, later) in zip(self._stages, pairwise(self._marks), strict=True)
        }
