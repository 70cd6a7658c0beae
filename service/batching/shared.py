"""Identical calls that are under way at once share one run.  Knows nothing of what is computed, and remembers nothing afterwards."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.batching.refusals import missed
from service.errors import Overloaded
from service.telemetry import metrics, traces

Result = TypeVar("Result")


@dataclass
class _Run(Generic[Result]):
    task: asyncio.Task[Result]
    waiting: int = 0
    trace: traces.There = field(default_factory=traces.here)
    """the span of whoever asked first"""


class SharedRuns(Generic[Result]):
    """One run for all who ask for the same thing while it is made."""

    def __init__(self) -> None:
        self._runs: dict[Hashable, _Run[Result]] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether a run is under way that ``run`` would join."""
        return key in self._runs

    async def run(self, key: Hashable, call: Callable[[], Awaitable[Result]], deadline: float = math.inf) -> Result:
        """Make the call, or wait until ``deadline``, on the monotonic clock, for the one that somebody else made under this key.

        The call has its own deadline, that of whoever made it, and what it began in time is finished.
        Whoever leaves, leaves the others their run; when the last has left it is cancelled.  A run that was refused for whoever asked
        first, whose deadline may have been nearer, is made again for the others.
        Raises what the call raises, and DeadlineMissed.
        """
        while True:
            run = self._runs.get(key)
            joined = run is not None
            if run is None:
                run = self._runs[key] = _Run(asyncio.ensure_future(call()))
                run.task.add_done_callback(_seen)
            else:
                metrics.COALESCED.inc()
                traces.link(run.trace)
            run.waiting += 1
            try:
                await asyncio.wait([run.task], timeout=deadline - time.monotonic() if joined else None)
                if run.task.done():
                    return run.task.result()
            except Overloaded:
                if not joined:
                    raise
            finally:
                run.waiting -= 1
                if run.task.done() or not run.waiting:
                    run.task.cancel()
                    if self._runs.get(key) is run:
                        del self._runs[key]
            if not run.task.done():
                raise missed("somebody else's request for the same was at work and the deadline passed")


def _seen(task: asyncio.Task[Result]) -> None:
    """A run that nobody waits for any more may fail without a word in the log."""
    if not task.cancelled():
        task.exception()
