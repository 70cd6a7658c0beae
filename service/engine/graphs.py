"""CUDA graphs: what a network launches for one shape, recorded once and replayed as one launch.

A U-Net of Stable Diffusion launches a thousand operations, each a few microseconds of the processor's time: at batch 1 the device waits for
them.  A replay has none of that, and runs the very same kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only


class Recorder:
    """Records networks of one device, all into the same memory: only one of them runs at a time.

    Args:
        device: of CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """Something that does what ``call`` does, for tensors of these shapes, and for all else that is in the arguments.

        Its results are copies: they outlast the next replay.  Raises whatever a call does that cannot be recorded.
        """
        args, kwargs = held = tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        inputs = [leaf for leaf in tree_leaves(held) if isinstance(leaf, torch.Tensor)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            waiting = torch.cuda.current_stream()
            self._stream.wait_stream(waiting)
            with torch.cuda.stream(self._stream):  # of its own too, because a recording that fails does not give the stream back
                call(*args, **kwargs)  # libraries choose their kernels and take their workspace now: they may not while it is recorded
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    outputs = call(*args, **kwargs)
            waiting.wait_stream(self._stream)

        def replay(*args: Any, **kwargs: Any) -> Any:
            given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
            for kept, tensor in zip(inputs, given, strict=True):
                kept.copy_(tensor)
            graph.replay()
            return tree_map_only(torch.Tensor, torch.clone, outputs)

        return replay
