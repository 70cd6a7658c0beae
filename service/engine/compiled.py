"""Makes networks fast for the shapes a service is warmed up with, and for no others: compiling takes longer than any request may wait.

``torch.compile`` where it is asked for, and on a GPU CUDA graphs of what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import structlog
import torch
from torch import nn

BUCKETS = 64
"""shapes of one network that may be compiled"""

Call = Callable[..., Any]


class Records(Protocol):
    """``service.engine.graphs.Recorder``."""

    def record(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call: ...


class Buckets:
    """Which shapes are made fast, for all networks of a model.

    Args:
        backend: of ``torch.compile``; None: nothing is compiled.
        recorder: of CUDA graphs; None: nothing is recorded.
    """

    def __init__(self, backend: str | None = "inductor", recorder: Records | None = None) -> None:
        self._backend, self._recorder, self._warming = backend, recorder, False
        if backend is not None:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, BUCKETS)

    @contextmanager
    def warming(self) -> Iterator[None]:
        """What runs in the block is made fast, and runs so from then on."""
        searched, self._warming = torch.backends.cudnn.benchmark, True
        torch.backends.cudnn.benchmark = searched or self._recorder is not None  # it remembers what it found for a shape
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark, self._warming = searched, False

    def prepare(self, network: nn.Module) -> None:
        """Make a network take the fast way where it can; a shape for which there is none takes the plain one, and is logged."""
        plain = network.forward
        compiled = None if self._backend is None else torch.compile(plain, dynamic=False, backend=self._backend)
        ready: dict[tuple[Any, ...], Call] = {}

        def forward(*args: Any, **kwargs: Any) -> Any:
            shape = _shape(args, kwargs)
            if shape not in ready and self._warming:
                ready[shape] = self._fast(plain, compiled, args, kwargs)
            return ready.get(shape, plain)(*args, **kwargs)

        network.forward = forward

    def _fast(self, plain: Call, compiled: Call | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The fastest way that there is for such arguments."""
        way = plain
        if compiled is not None and _tried("not compiled", lambda: compiled(*args, **kwargs), args, kwargs) is not None:
            way = compiled
        if self._recorder is not None:
            recorder, call = self._recorder, way
            way = _tried("not recorded", lambda: recorder.record(call, args, kwargs), args, kwargs) or way
        return way


def _tried(failure: str, attempt: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an attempt gives, or None: a compiler has many ways to fail, and none is a reason not to serve."""
    try:
        return attempt()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        structlog.get_logger().exception(failure, shape=str(_shape(args, kwargs)))
        return None


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    values = [*args, *(kwargs[name] for name in sorted(kwargs))]
    return tuple(tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in values)
