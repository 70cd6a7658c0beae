"""The queue in front of the device: who may wait, who goes next, who is told what.

    admit -> Ticket.turn   -> Ahead, until the device has little to do
                   .submit -> Waiting -> DeviceThread -> future of the caller
                   .aside  -> CpuPool -> result

A picture is admitted once, as a whole and before it is decoded.  Under that ticket it waits for its turn to be begun, submits its one item
or its tiles to the device, and does aside what the processor does: whoever is let in is not turned away half-way, and what waits anywhere
in the service is bounded in pixels.
A batch is closed when the device is idle, or, to be laid out beside the one in hand, when it is full or its oldest item has waited
``max_delay_s``.  Nothing polls: the dispatcher sleeps until an item comes, a batch is done, or the next moment named by an item.
Batches run at two sizes only, 1 and ``max_batch`` (the rest is padding), so that the company a request keeps does not choose among many
kernels and change its pixels.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from service.batching.admission import Admission, Claim, whole_seconds
from service.batching.ahead import Beginner
from service.batching.cpu import CpuPool
from service.batching.device import DeviceThread, Operation, Outcome
from service.batching.refusals import missed, stopping
from service.batching.replies import answer
from service.batching.rows import Rows
from service.batching.waiting import LANES, Batch, Item, Lane
from service.errors import DeadlineMissed, DeviceFailed
from service.telemetry import metrics, traces

STUCK_AFTER_S = 60.0
"""a batch that takes this long, and twenty times what was predicted, counts as stuck"""
STUCK_AFTER_UNKNOWN_S = 900.0
"""where nothing could be predicted: the first picture of a large model on a processor takes minutes"""
PATIENCE_S: dict[Lane, float] = {"interactive": 0.5, "bulk": 2.0}
"""for so long a picture that is to be begun is overtaken, on the processor, by those that are to be finished; from when it came"""

Result = TypeVar("Result")


class Ticket:
    """A picture that was let in.  Counts towards the bounds from ``with`` to its end, whatever happens in between."""

    def __init__(self, batcher: Batcher, claim: Claim) -> None:
        self._batcher, self._claim = batcher, claim
        self._beginner: Beginner | None = None
        """since its turn was asked for, until something of it reaches the device's row"""

    def __enter__(self) -> Ticket:
        self._batcher.admission.enter(self._claim)
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        self._leave_row()
        self._batcher.admission.leave(self._claim, failure)

    async def turn(self) -> float:
        """Wait until the device has so little to do that this picture may be begun; returns the seconds that took.

        Raises DeadlineMissed where the turn would come too late, and Overloaded when the service is closing.  Cancelling the caller gives
        its place away.
        """
        self._beginner = self._batcher.begin(self._claim)
        self._claim.waited_s = await self._batcher.turn_of(self._beginner)
        return self._claim.waited_s

    def _leave_row(self) -> None:
        if self._beginner is not None:
            self._batcher.leave(self._beginner)
            self._beginner = None

    async def aside(self, call: Callable[[], Result], finishing: bool = False) -> Result:
        """Run a call on the processor's threads; one that finishes the picture goes before those that begin one.

        Raises DeadlineMissed when its turn comes too late to finish before the deadline, and whatever the call raises.
        """
        claim = self._claim
        patience = 0.0 if finishing else PATIENCE_S[claim.lane] - claim.waited_s
        result, seconds = await self._batcher.processor.run(call, patience, claim.latest)
        self._batcher.admission.processed(claim, seconds)
        return result

    async def submit(self, shape: Hashable, payload: Any, pixels: int) -> Any:
        """Queue one item of the picture and wait for its result.

        Args:
            shape: items of one operation and shape can share a batch.
            payload: what the operation takes.
            pixels: padded; the item's cost.

        Raises Overloaded when the service is closing, DeadlineMissed when the deadline passed in the queue, and whatever the operation
        raised.  Cancelling the caller takes the item out of the queue if it has not reached the device, and leaves its neighbours alone.
        """
        self._batcher.admission.submitted(self._claim, pixels)
        self._leave_row()
        return await self._batcher.submit_for(self._claim, shape, payload, pixels)


class Batcher:
    """Runs operations in batches on a thread of its own, and what surrounds them on others.

    Args:
        operations: by name.
        max_batch: the larger of the two batch sizes.
        max_pixels: tickets beyond this sum are refused; one alone is always taken.
        max_delay_s: how long a batch that could be laid out waits for company while the device is busy; 0 is allowed.
        processor: threads for what surrounds the device.
        clock: monotonic seconds.
        processor_only: names of what is admitted and submits nothing.
    """

    def __init__(
        self,
        operations: dict[str, Operation],
        max_batch: int,
        max_pixels: int,
        max_delay_s: float = 0.01,
        processor: CpuPool | None = None,
        clock: Callable[[], float] = time.monotonic,
        processor_only: Sequence[str] = (),
    ) -> None:
        self._clock = clock
        self.processor = processor or CpuPool(1, clock)
        self.rows = Rows(max_batch, max_delay_s, self.processor.threads, clock)
        self.admission = Admission(
            [*operations, *processor_only], max_pixels, self.processor.threads, self.rows.durations, self.rows.wait_s, clock
        )
        self._wake = asyncio.Event()
        self._closing = False
        self.death: BaseException | None = None
        self.on_death: Callable[[BaseException], None] = lambda error: None
        """called once, on the event loop, if the device thread dies"""
        self._device = DeviceThread(operations, self._settle, self._on_death, self.rows.waiting.largest, clock)
        self._dispatcher = asyncio.create_task(self._dispatch())
        for operation in operations:
            for lane in LANES:
                for metric in (metrics.QUEUE_DEPTH, metrics.QUEUE_WAIT):
                    metric.labels(op=operation, lane=lane)  # there from the start, at 0

    @property
    def alive(self) -> bool:
        """Whether the dispatcher and the device thread still run, and the batch in hand is not stuck."""
        return not self._dispatcher.done() and self._device.alive and not self.stuck

    @property
    def stuck(self) -> bool:
        since, predicted = self.rows.busy_since, [self.rows.predicted_s(batch) for batch in self.rows.in_hand]
        longest = max(STUCK_AFTER_S, 20 * sum(predicted)) if all(predicted) else STUCK_AFTER_UNKNOWN_S
        return since is not None and self._clock() - since > longest

    @property
    def closing(self) -> bool:
        return self._closing

    def admit(
        self,
        operation: str,
        pixels: int,
        lane: Lane = "interactive",
        deadline: float = math.inf,
        submitted: int | None = None,
        kind: Hashable = None,
        largest: int = 0,
    ) -> Ticket:
        """Let a picture in, or not; to be used as a context manager.

        Args:
            operation: key of ``operations`` that it will submit to, or one of ``processor_only``.
            pixels: of the whole picture, padded.
            lane: ``interactive`` or ``bulk``.
            deadline: on the batcher's clock; past it the result is of no use.
            submitted: pixels of all the items that it will submit, where they are not ``pixels``: tiles overlap.
            kind: what else decides on how long its items take, and is part of their shape.
            largest: pixels of the largest of its items, where that is more than ``pixels``: a small picture has a border.

        Raises Overloaded when the service is full or closing, or cannot meet the deadline for what is ahead, and DeadlineMissed where this
        picture takes longer by itself.
        """
        if self._closing or self.death:
            metrics.REJECTED.labels(reason="stopping").inc()
            raise stopping()
        return Ticket(self, self.admission.claim(operation, pixels, lane, deadline, submitted, kind, largest))

    def refuse_hopeless(self, operation: str, deadline: float, lane: Lane = "interactive") -> None:
        """Raise as ``admit`` does where even a small picture, coming now, could not be done in time: before anything of it is read.

        Under overload most are refused, and what a refusal costs is taken from the others.
        """
        self.admission.refuse_hopeless(operation, deadline, lane)

    async def submit(
        self, operation: str, shape: Hashable, payload: Any, pixels: int, lane: Lane = "interactive", deadline: float = math.inf
    ) -> Any:
        """Admit and submit a picture that is one item; see ``admit`` and ``Ticket.submit``."""
        with self.admit(operation, pixels, lane, deadline) as ticket:
            return await ticket.submit(shape, payload, pixels)

    def predicted_wait_s(self, lane: Lane = "interactive") -> float:
        """Seconds until the work ahead of a picture that comes now is done, on the device or on the processor, whichever is behind."""
        return self.admission.wait_s(lane)

    async def warm_up(self, operation: str, shape: Hashable, payload: Any, pixels: int, twice: bool = True, kind: Hashable = None) -> None:
        """Run a bucket at both of its sizes, to be called before there is traffic; learns how long they take.

        ``twice``: the first run, which makes the kernels, teaches nothing.

        Raises what the operation raises.  A full batch that does not fit into memory is no failure: smaller ones will be made.
        """
        for size in dict.fromkeys((1, self.rows.waiting.limit((operation, shape)))):
            for timed in (False, True) if twice else (True,):
                replies = [asyncio.get_running_loop().create_future() for _ in range(size)]
                items = [
                    Item((operation, shape), payload, pixels, "interactive", self._clock(), math.inf, 0.0, reply, kind=kind)
                    for reply in replies
                ]
                self._hand_over(Batch((operation, shape), items, size, timed))
                for outcome in await asyncio.gather(*replies, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome

    async def close(self) -> None:
        """Refuse new requests, finish the queued ones, stop the threads.  Safe to call twice."""
        self._closing = True
        self._wake.set()
        with suppress(asyncio.CancelledError):
            await self._dispatcher
        await self._device.stop()
        await self.processor.close()

    def begin(self, claim: Claim) -> Beginner:
        """A picture that was let in gets into the row of those to be begun; ``turn_of`` waits there, ``leave`` must follow."""
        if self._closing or self.death:
            raise stopping()
        beginner = self.rows.begin(claim, asyncio.get_running_loop().create_future())
        self._count(beginner, +1)
        self._give_turns()
        return beginner

    async def turn_of(self, beginner: Beginner) -> float:
        """``Ticket.turn``, which is what to call."""
        if beginner.reply.done():
            return 0.0
        try:
            await beginner.reply
        except asyncio.CancelledError:
            if self.leave(beginner):
                metrics.REJECTED.labels(reason="client-gone").inc()
            raise
        return self._clock() - beginner.asked

    def leave(self, beginner: Beginner) -> bool:
        """A picture waits for the device now, or will never be begun; returns whether it still waited for its turn."""
        waited = self.rows.ahead.leave(beginner)
        if waited:
            self._count(beginner, -1)
        self._wake.set()
        return waited

    async def submit_for(self, claim: Claim, shape: Hashable, payload: Any, pixels: int) -> Any:
        """``Ticket.submit``, which is what to call."""
        if self._closing or self.death:
            raise stopping()
        item = self.rows.submit(claim, shape, payload, pixels, asyncio.get_running_loop().create_future(), traces.here())
        self._count(item, +1)
        self._wake.set()
        try:
            return await item.reply
        except asyncio.CancelledError:
            item.gone = True
            if self.rows.waiting.remove(item):
                self._wake.set()
                self._count(item, -1)
                metrics.REJECTED.labels(reason="client-gone").inc()
            raise

    def _count(self, waiter: Item | Beginner, sign: int) -> None:
        metrics.QUEUE_DEPTH.labels(op=waiter.operation, lane=waiter.lane).inc(sign)

    # -- dispatch, all on the event loop

    async def _dispatch(self) -> None:
        try:
            while not (self._closing and not self.rows.waiting and not self.rows.in_hand) and not self.death:
                self._expire()
                batch = self.rows.next_batch()
                if batch is not None:
                    self._start(batch)
                    continue
                self._give_turns()
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._until_next_moment())
        finally:
            self._closing = True
            for item in list(self.rows.waiting):
                self.rows.waiting.remove(item)
                self._overtaken(item, stopping())
            self._give_turns()

    def _give_turns(self) -> None:
        """Tell those who may be begun, or that nobody will be."""
        if self._closing:
            for late in list(self.rows.ahead):
                self.rows.ahead.leave(late)
                self._overtaken(late, stopping())
        while (beginner := self.rows.next_turn()) is not None:
            self._count(beginner, -1)
            answer(beginner.reply, None)

    def _overtaken(self, waiter: Item | Beginner, why: Exception) -> None:
        """Out of its row: its turn will not come, or too late."""
        self._count(waiter, -1)
        answer(waiter.reply, why)

    def _start(self, batch: Batch) -> None:
        now, operation = self._clock(), batch.bucket[0]
        for item in batch.items:
            self._count(item, -1)
            metrics.QUEUE_WAIT.labels(op=operation, lane=item.lane).observe(item.waited_s + now - item.arrived)
        metrics.BATCH_SIZE.labels(op=operation).observe(len(batch.items))
        metrics.BATCH_PIXELS.labels(op=operation).observe(batch.size * batch.items[0].pixels)
        self._hand_over(batch)

    def _hand_over(self, batch: Batch) -> None:
        self.rows.hand_over(batch)
        self._device.start(batch)

    def _settle(self, batch: Batch, outcomes: list[Outcome], seconds: float) -> None:
        computed = not any(isinstance(outcome, Exception) for outcome in outcomes) and not any(item.gone for item in batch.items)
        self.rows.done(batch, seconds if batch.timed and computed else None)
        for item, outcome in zip(batch.items, outcomes, strict=True):
            answer(item.reply, outcome)
        metrics.STAGE_SECONDS.labels(stage=f"device-{batch.bucket[0]}").observe(seconds)
        self._wake.set()

    def _expire(self) -> None:
        for waiter in self.rows.expired():
            self._overtaken(waiter, self._missed(waiter.lane))

    def _missed(self, lane: Lane) -> DeadlineMissed:
        return missed("the deadline passed in the queue", whole_seconds(self.predicted_wait_s(lane)))

    def _until_next_moment(self) -> float | None:
        """Seconds until there may be something to do; None where only an event can change anything."""
        moment = self.rows.next_moment()
        return None if moment == math.inf else max(0.0, moment - self._clock())

    def _on_death(self, error: BaseException) -> None:
        self.death = error
        for batch in self.rows.in_hand:
            for item in batch.items:
                answer(item.reply, DeviceFailed("the device thread died: the process must be restarted"))
        self._wake.set()
        self.on_death(error)
