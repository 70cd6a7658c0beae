"""A clock that jumps to what happens next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Events:
    """Calls to be made at given moments, in their order; those of one moment in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        """seconds"""
        self._planned: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.now

    def at(self, moment: float, call: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._planned, (moment if moment > self.now else self.now, next(self._numbers), call, args))

    def run(self, until: float = float("inf")) -> None:
        """Make every call that is due by then; ends early where nothing more is planned."""
        while self._planned and self._planned[0][0] <= until:
            self.now, _, call, args = heapq.heappop(self._planned)
            call(*args)
        if until < float("inf"):
            self.now = until
