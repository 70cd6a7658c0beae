"""``torch.compile`` for the shapes a service is warmed up with, and for no others: compiling takes longer than any request may wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import torch
from torch import nn

BUCKETS = 64
"""shapes of one network that may be compiled"""


class Buckets:
    """Which shapes are compiled, for all networks of a model.

    Args:
        backend: of ``torch.compile``.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._backend, self._warming = backend, False
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, BUCKETS)

    @contextmanager
    def warming(self) -> Iterator[None]:
        """What runs in the block is compiled, and runs compiled from then on."""
        self._warming = True
        try:
            yield
        finally:
            self._warming = False

    def compile(self, network: nn.Module) -> None:
        """Make a network take the compiled way where it can; a shape that cannot be compiled takes the plain one, and is logged."""
        plain = network.forward
        fast = torch.compile(plain, dynamic=False, backend=self._backend)
        ready: set[tuple[Any, ...]] = set()

        def forward(*args: Any, **kwargs: Any) -> Any:
            shape = _shape(args, kwargs)
            if shape in ready:
                return fast(*args, **kwargs)
            if self._warming:
                try:
                    result = fast(*args, **kwargs)
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # a compiler has many ways to fail, and none is a reason not to serve
                    structlog.get_logger().exception("not compiled", network=type(network).__name__, shape=str(shape))
                else:
                    ready.add(shape)
                    return result
            return plain(*args, **kwargs)

        network.forward = forward


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    values = [*args, *(kwargs[name] for name in sorted(kwargs))]
    return tuple(tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in values)
