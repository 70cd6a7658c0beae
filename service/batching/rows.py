"""Everything on its way to the device, and what is to be done next: who is begun, which batch is closed, when to look again.

    begin -> Ahead -> next_turn     submit -> Waiting -> next_batch -> in hand -> done

A pure data structure: it knows no threads or futures, and its clock is given.  ``Batcher`` drives it by an event loop, ``sdc bench fleet``
by a clock that jumps; so what is simulated is what is served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from service.batching.admission import Claim
from service.batching.ahead import Ahead, Beginner
from service.batching.durations import Durations
from service.batching.waiting import Batch, Item, Lane, Waiting

MOST_IN_HAND = 2
"""batches that the device was given: one that it computes, and the next, laid out for it"""


class Rows:
    """All rows of a process, and the batches in hand.

    Args:
        max_batch: the larger of the two sizes a batch runs at.
        max_delay_s: how long a batch that could be laid out waits for company while the device is busy.
        threads: of the processor.
        clock: monotonic seconds.
    """

    def __init__(self, max_batch: int, max_delay_s: float, threads: int, clock: Callable[[], float]) -> None:
        self._max_delay_s, self._clock = max_delay_s, clock
        self.durations = Durations()
        self.waiting = Waiting(max_batch, self.durations)
        self.ahead = Ahead(threads, self.waiting.wait_of)
        self.in_hand: list[Batch] = []
        """given to the device and not done, the one that it computes first"""
        self.busy_since: float | None = None
        """when the first of them had nothing before it any more"""

    def __iter__(self) -> Iterator[Item | Beginner]:
        yield from self.ahead
        yield from self.waiting

    def begin(self, claim: Claim, reply: Any) -> Beginner:
        """A picture that was let in waits for its turn."""
        beginner = Beginner(claim.operation, claim.lane, self._clock(), claim.latest, reply)
        self.ahead.add(beginner)
        return beginner

    def submit(self, claim: Claim, shape: Hashable, payload: Any, pixels: int, reply: Any, trace: Any = None) -> Item:
        """An item of a picture waits for the device."""
        deadline = claim.deadline - claim.processor_s  # it must be coded or written afterwards
        item = Item(
            (claim.operation, shape), payload, pixels, claim.lane, self._clock(), deadline, self._share(claim, shape, pixels), reply,
            claim.waited_s, trace=trace, kind=claim.kind,
        )  # fmt: skip
        claim.waited_s = 0.0  # told once
        self.waiting.add(item)
        return item

    def next_turn(self) -> Beginner | None:
        """Whoever may be begun now; it is on its way until ``ahead.leave``."""
        return self.ahead.next()

    def next_batch(self) -> Batch | None:
        """A batch, if one may be closed now; to be given to the device, by ``hand_over``."""
        if not self.waiting or len(self.in_hand) >= MOST_IN_HAND:
            return None
        if not self.in_hand or self._clock() - self.waiting.oldest() >= self._max_delay_s:
            return self.waiting.take()
        bucket = self.waiting.full()
        return self.waiting.take(bucket) if bucket else None

    def hand_over(self, batch: Batch) -> None:
        """The device is given a batch."""
        if not self.in_hand:
            self.busy_since = self._clock()
        self.in_hand.append(batch)

    def done(self, batch: Batch, seconds: float | None) -> None:
        """The device is done with a batch, in ``seconds``; None where those teach nothing."""
        self.in_hand.remove(batch)
        self.busy_since = self._clock() if self.in_hand else None
        if seconds is not None:
            self.durations.learn(*batch.bucket, batch.size, batch.items[0].pixels, seconds, batch.items[0].kind)

    def expired(self) -> list[Item | Beginner]:
        """Take out everyone who would be late by now."""
        return [*self.waiting.expired(self._free_at()), *self.ahead.expired(self._clock())]

    def next_moment(self) -> float:
        """When someone can expire, or a batch may be laid out, if nothing happens before; ``inf`` for never."""
        moments = [item.deadline - self.waiting.alone(item) for item in self.waiting]
        moments += [beginner.latest for beginner in self.ahead]
        if self.waiting and len(self.in_hand) == 1:
            moments.append(self.waiting.oldest() + self._max_delay_s)
        return min(moments, default=math.inf)

    def oldest_s(self) -> float:
        """Seconds the longest-waiting has waited for the device or for its turn to be begun; 0 where nothing waits."""
        since = [beginner.asked for beginner in self.ahead] + ([self.waiting.oldest()] if self.waiting else [])
        return self._clock() - min(since) if since else 0.0

    def running_s(self) -> float:
        """What the batches in hand take, as if they had just begun."""
        return sum(map(self.predicted_s, self.in_hand))

    def predicted_s(self, batch: Batch) -> float:
        """What a batch takes; 0 where nothing is known."""
        return self.durations.predict(*batch.bucket, batch.size, batch.items[0].pixels, batch.items[0].kind)

    def wait_s(self, lane: Lane) -> float:
        """Seconds until the device has done what reached it and goes before an item of this lane that comes now."""
        return self.running_s() + self.waiting.wait_of(lane)

    def _free_at(self) -> float:
        """When an item that is taken out now could begin: what the device is busy with is ahead of it."""
        return self._clock() if self.busy_since is None else max(self._clock(), self.busy_since + self.running_s())

    def _share(self, claim: Claim, shape: Hashable, pixels: int) -> float:
        """Device time to count for an item: alone, or its part of a full batch where that is quicker and was seen."""
        bucket = (claim.operation, shape)
        alone, largest = self.durations.predict(*bucket, 1, pixels, claim.kind), self.waiting.limit(bucket)
        if self.durations.best_size(*bucket, largest, pixels, largest) == 1:
            return alone
        return min(alone, self.durations.predict(*bucket, largest, pixels, claim.kind) / largest)
