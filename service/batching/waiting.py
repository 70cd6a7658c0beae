"""Who waits, and who goes next: a pure data structure, without threads, futures or a clock of its own.

Items wait in a bucket for each (operation, shape), in one row for each lane.  The lane that has had less of the device, by its weight,
goes next; within it the bucket whose first item is oldest, so that a rare shape is not starved by a common one.  Places of a batch that its
lane does not fill go to the other lane's items of that bucket: they would be padding otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from service.batching.durations import Durations

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "bulk")
OTHER: dict[Lane, Lane] = {"interactive": "bulk", "bulk": "interactive"}
WEIGHTS: dict[Lane, float] = {"interactive": 4.0, "bulk": 1.0}
"""share of the device's time when both lanes wait"""

Bucket = tuple[str, Hashable]
"""operation and shape"""


@dataclass(eq=False)
class Item:
    """One item of one request."""

    bucket: Bucket
    payload: Any
    pixels: int
    lane: Lane
    arrived: float
    deadline: float
    """when its result is of no more use, on the queue's clock; ``inf`` for never"""
    seconds: float
    """its share of device time, as predicted when it came"""
    reply: Any
    """whatever the owner of the queue answers by"""
    waited_s: float = 0.0
    """before it arrived, for its picture's turn to be begun"""
    gone: bool = False
    """the caller left"""
    trace: Any = None
    """the span it is part of"""
    kind: Hashable = None
    """see ``Durations.learn``; that of its bucket"""

    @property
    def operation(self) -> str:
        return self.bucket[0]


@dataclass(frozen=True)
class Batch:
    """Items of one bucket that go to the device together, as ``size`` (the rest is padding)."""

    bucket: Bucket
    items: list[Item]
    size: int
    timed: bool = True
    """whether to learn from how long it takes"""


@dataclass
class Waiting:
    """All rows of all buckets.

    Args:
        max_batch: the larger of the two sizes a batch runs at.
        durations: decides between the two.
        largest: buckets whose full batch did not fit into memory: what does.
    """

    max_batch: int
    durations: Durations
    largest: dict[Bucket, int] = field(default_factory=dict)
    rows: dict[Bucket, dict[Lane, deque[Item]]] = field(default_factory=dict)
    used: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))
    """device time each lane has had, divided by its weight"""
    seconds: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))
    """device time that what waits in each lane will take"""

    def __iter__(self) -> Iterator[Item]:
        return (item for lanes in self.rows.values() for row in lanes.values() for item in row)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def add(self, item: Item) -> None:
        if not any(lanes[item.lane] for lanes in self.rows.values()):
            # A lane that was empty has no claim on time that it did not use.  What it used beyond its share still counts: the row of a
            # lane whose items come one by one, as tiles do, is empty whenever one is taken.
            self.used[item.lane] = max(self.used[item.lane], self.used[OTHER[item.lane]])
        self.rows.setdefault(item.bucket, {lane: deque() for lane in LANES})[item.lane].append(item)
        self.seconds[item.lane] += item.seconds

    def remove(self, item: Item) -> bool:
        """Take an item out, wherever it stands; False where it does not wait."""
        row = self.rows.get(item.bucket, {}).get(item.lane, deque())
        if item not in row:
            return False
        row.remove(item)
        self._left(item)
        return True

    def expired(self, begin: float) -> list[Item]:
        """Take out every item whose deadline will have passed when its own computation ends, if it begins at ``begin``."""
        late = [item for item in self if begin + self.alone(item) > item.deadline]
        for item in late:
            self.remove(item)
        return late

    def alone(self, item: Item) -> float:
        """Seconds the item takes by itself."""
        return self.durations.predict(*item.bucket, 1, item.pixels, item.kind)

    def limit(self, bucket: Bucket) -> int:
        return min(self.max_batch, self.largest.get(bucket, self.max_batch))

    def full(self) -> Bucket | None:
        """A bucket of the lane whose turn it is that fills a batch, if there is one."""
        full = [bucket for bucket, lanes in self.rows.items() if sum(map(len, lanes.values())) >= self.limit(bucket)]
        return self._oldest(full)

    def oldest(self) -> float:
        """When the longest-waiting item came; raises ValueError where nothing waits."""
        return min(row[0].arrived for lanes in self.rows.values() for row in lanes.values() if row)

    def take(self, bucket: Bucket | None = None) -> Batch | None:
        """The next batch, of ``bucket`` where one is named."""
        bucket = bucket or self._oldest(self.rows)
        if bucket is None:
            return None
        lanes, lane = self.rows[bucket], self._turn([bucket])
        first, second = lanes[lane], lanes[OTHER[lane]]
        pixels, limit = first[0].pixels, self.limit(bucket)
        size = self.durations.best_size(*bucket, len(first) + len(second), pixels, limit)
        items: list[Item] = []
        for row in (first, second):
            while row and len(items) < size:
                items.append(row.popleft())
        for item in items:
            self._left(item)
        spent = self.durations.predict(*bucket, size, pixels, items[0].kind) or 1e-9 * size * pixels
        for item in items:
            self.used[item.lane] += spent / len(items) / WEIGHTS[item.lane]
        return Batch(bucket, items, 1 if len(items) == 1 else limit)

    def wait_of(self, lane: Lane) -> float:
        """Seconds until an item that comes now would have its turn, the running batch aside."""
        other, mine = OTHER[lane], self.seconds[lane]
        # the other lane takes its share while this one is worked off, and no more than it has
        return mine + min(self.seconds[other], mine * WEIGHTS[other] / WEIGHTS[lane])

    def _turn(self, buckets: Iterable[Bucket]) -> Lane:
        waiting = [lane for lane in LANES if any(self.rows[bucket][lane] for bucket in buckets)]
        return min(waiting, key=lambda lane: self.used[lane])

    def _oldest(self, buckets: Iterable[Bucket]) -> Bucket | None:
        """The bucket whose first item in the lane whose turn it is has waited longest."""
        candidates = list(buckets)
        if not candidates:
            return None
        lane = self._turn(candidates)
        return min((bucket for bucket in candidates if self.rows[bucket][lane]), key=lambda bucket: self.rows[bucket][lane][0].arrived)

    def _left(self, item: Item) -> None:
        self.seconds[item.lane] -= item.seconds
        if item.bucket in self.rows and not any(self.rows[item.bucket].values()):
            del self.rows[item.bucket]
        if not self.rows:
            self.seconds = dict.fromkeys(LANES, 0.0)  # no dust of rounding
