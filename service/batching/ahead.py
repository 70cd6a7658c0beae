"""How far the processor works ahead of the device: who is to be begun waits here while the device has enough to do.

Read further ahead, pictures would only lie about, decoded, and on a machine where both share the cores the first of a burst would come
later for it.  A pure data structure, like ``waiting``: it knows no threads, futures or clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from service.batching.waiting import LANES, Lane

AHEAD_S = 1.0
"""nothing is begun in a lane while so many seconds of device time wait there: more than it takes to open a picture, and than a full batch
takes where batches pay"""
AT_ONCE = 2
"""pictures of a lane on their way to the device, for each thread of the processor: one more than it works on"""


@dataclass(eq=False)
class Beginner:
    """A picture that was let in and is not begun."""

    operation: str
    lane: Lane
    asked: float
    """when it came, on the queue's clock"""
    latest: float
    """begun later it would be late"""
    reply: Any
    """whatever the owner answers by"""


class Ahead:
    """A row for each lane, first come, first served.

    Args:
        threads: of the processor.
        waiting_s: seconds of device time that wait before an item of a lane.
    """

    def __init__(self, threads: int, waiting_s: Callable[[Lane], float]) -> None:
        self._at_once, self._waiting_s = AT_ONCE * threads, waiting_s
        self._rows: dict[Lane, deque[Beginner]] = {lane: deque() for lane in LANES}
        self._begun: dict[Lane, set[Beginner]] = {lane: set() for lane in LANES}

    def __iter__(self) -> Iterator[Beginner]:
        return (beginner for row in self._rows.values() for beginner in row)

    def add(self, beginner: Beginner) -> None:
        self._rows[beginner.lane].append(beginner)

    def leave(self, beginner: Beginner) -> bool:
        """It waits for the device now, or will never be begun; returns whether it still stood in the row.  Safe to call again."""
        self._begun[beginner.lane].discard(beginner)
        row = self._rows[beginner.lane]
        if beginner not in row:
            return False
        row.remove(beginner)
        return True

    def expired(self, now: float) -> list[Beginner]:
        """Take out everyone who would be late by now."""
        late = [beginner for beginner in self if beginner.latest < now]
        for beginner in late:
            self.leave(beginner)
        return late

    def next(self) -> Beginner | None:
        """Whoever may be begun now, if there is one; it is on its way until it ``leave``s."""
        for lane, row in self._rows.items():
            if row and len(self._begun[lane]) < self._at_once and self._waiting_s(lane) < AHEAD_S:
                self._begun[lane].add(row[0])
                return row.popleft()
        return None
