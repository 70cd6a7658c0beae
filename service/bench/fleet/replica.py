"""One process of the service without threads, model and HTTP: the same admission, rows and learned durations, on a clock that jumps.

    arrive -> slots -> admission -> turn -> processor -> rows -> device, one batch in hand and one laid out -> processor -> reply

``Admission`` and ``Rows`` are the service's own; what ``Batcher``, ``DeviceThread`` and ``CpuPool`` do with them is done here without an
event loop.  Not modelled: the bound on bytes of bodies, coalescing, kept renders (a trace holds what misses them).
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from service.batching.admission import Admission, Claim
from service.batching.ahead import Beginner
from service.batching.batcher import PATIENCE_S
from service.batching.rows import Rows
from service.batching.waiting import LANES, Batch, Lane
from service.bench.fleet.events import Events
from service.bench.fleet.measured import Measured, Picture
from service.bench.fleet.promql import Labels
from service.errors import DeadlineMissed, Overloaded
from service.settings import Settings
from service.telemetry import metrics

ITEMS_OF = {"compress": "encode", "render": "render"}
"""what the device calls it"""
BUCKETS_S: list[float] = list(metrics.QUEUE_WAIT._upper_bounds)


@dataclass(frozen=True)
class Limits:
    """Of one process, in the words of the settings."""

    slots: int
    max_batch: int
    max_queued_pixels: int
    max_delay_s: float
    cpu_workers: int
    deadline_s: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            settings.slots, settings.max_batch, settings.max_queued_pixels, settings.max_delay_ms / 1000, settings.cpu_workers,
            settings.deadline_s,
        )  # fmt: skip


@dataclass(eq=False, slots=True)
class Request:
    """One picture on its way."""

    picture: Picture
    factor: float
    """its parts take so many times what was measured"""
    arrived: float
    deadline: float
    answered: Callable[[Request, str | None], None]
    """told the reason of a refusal, or None"""
    claim: Claim = field(init=False)
    beginner: Beginner = field(init=False)
    """as such it waits for its turn, until it is in the device's row"""


class Replica:
    """A process that is ready.

    Args:
        events: the clock, and where everything is planned.
        limits: of the process.
        measured: the kinds of pictures it was warmed with; a real one learns them in its first minutes.
        rng: draws what each part takes.
    """

    def __init__(self, events: Events, limits: Limits, measured: Measured, rng: random.Random) -> None:
        self.events, self.limits, self._rng = events, limits, rng
        self.inside: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter(dict.fromkeys(metrics.REASONS, 0))
        self._waits: dict[tuple[str, Lane], list[int]] = {(op, lane): [0] * len(BUCKETS_S) for op in ITEMS_OF.values() for lane in LANES}
        self._waited_s: dict[tuple[str, Lane], float] = dict.fromkeys(self._waits, 0.0)
        self._rows = Rows(limits.max_batch, limits.max_delay_s, limits.cpu_workers, events.clock)
        self._admission = Admission(
            list(ITEMS_OF.values()), limits.max_queued_pixels, limits.cpu_workers, self._rows.durations, self._rows.wait_s, events.clock
        )
        self._threads = limits.cpu_workers
        self._row: list[tuple[float, int, Request, float, Callable[[Request], None]]] = []
        self._numbers = itertools.count()
        self._next_look = float("inf")
        self._warm_up(measured)

    @property
    def busy(self) -> int:
        """Requests inside."""
        return self.inside.total()

    def _warm_up(self, measured: Measured) -> None:
        for picture in measured.pictures:
            factor, bucket = measured.contention[picture.operation], _bucket(picture)
            sizes = {self.limits.max_batch: picture.full_s, 1: picture.alone_s}  # the one where both are 1
            for size, seconds in sizes.items():
                self._rows.durations.learn(*bucket, size, picture.pixels, factor * self._one_of(seconds))

    def _one_of(self, seconds: list[float]) -> float:
        return seconds[int(self._rng.random() * len(seconds))]  # a fifth of what ``choice`` takes

    # -- a request

    def arrive(self, request: Request) -> None:
        """Take a request, or refuse it."""
        picture = request.picture
        if self.busy >= self.limits.slots:
            self._refused(request, "slots")
            return
        try:
            request.claim = self._admission.claim(_bucket(picture)[0], picture.pixels, picture.lane, request.deadline)
        except DeadlineMissed:
            self._refused(request, "deadline-too-short")
            return
        except Overloaded as error:
            self._refused(request, "queue-full" if error.detail == "the queue is full" else "deadline-unreachable")
            return
        self.inside[picture.operation] += 1
        self._admission.enter(request.claim)
        request.beginner = self._rows.begin(request.claim, request)
        self._dispatch()

    def _give_turns(self) -> None:
        """Whoever may be begun."""
        while (beginner := self._rows.next_turn()) is not None:
            request, lane = beginner.reply, beginner.lane
            request.claim.waited_s = self.events.now - beginner.asked
            self._aside(request, request.picture.begin_s, PATIENCE_S[lane] - request.claim.waited_s, self._submit)

    def _refused(self, request: Request, reason: str) -> None:
        self.rejected[reason] += 1
        request.answered(request, reason)

    def _overtaken(self, request: Request) -> None:
        """Its deadline passed while it waited."""
        self._rows.ahead.leave(request.beginner)
        self._admission.leave(request.claim, DeadlineMissed)
        self.inside[request.picture.operation] -= 1
        self._refused(request, "deadline-passed")

    def _computed(self, request: Request) -> None:
        self._aside(request, request.picture.finish_s, 0.0, self._finished)

    def _finished(self, request: Request) -> None:
        self._admission.leave(request.claim, None)
        self.events.at(self.events.now + request.factor * self._one_of(request.picture.outside_s), self._reply, request)

    def _reply(self, request: Request) -> None:
        self.inside[request.picture.operation] -= 1
        request.answered(request, None)

    # -- the processor

    def _aside(self, request: Request, seconds: list[float], patience_s: float, then: Callable[[Request], None]) -> None:
        took = request.factor * self._one_of(seconds)
        heapq.heappush(self._row, (self.events.now + patience_s, next(self._numbers), request, took, then))
        self._use_threads()

    def _use_threads(self) -> None:
        while self._threads and self._row:
            _, _, request, took, then = heapq.heappop(self._row)
            if self.events.now > request.claim.latest:
                self._overtaken(request)
                continue
            self._threads -= 1
            self.events.at(self.events.now + took, self._aside_done, request, took, then)

    def _aside_done(self, request: Request, took: float, then: Callable[[Request], None]) -> None:
        self._admission.processed(request.claim, took)
        self._threads += 1
        self._use_threads()
        then(request)

    # -- the device

    def _submit(self, request: Request) -> None:
        picture = request.picture
        self._admission.submitted(request.claim, picture.pixels)
        self._rows.ahead.leave(request.beginner)
        self._rows.submit(request.claim, picture.shape, None, picture.pixels, request)
        self._dispatch()

    def _dispatch(self) -> None:
        self._expire()
        while (batch := self._rows.next_batch()) is not None:
            self._start(batch)
            self._expire()
        self._give_turns()
        self._look_again()

    def _start(self, batch: Batch) -> None:
        for item in batch.items:
            key, waited = (item.operation, item.lane), item.waited_s + self.events.now - item.arrived
            self._waits[key][bisect_left(BUCKETS_S, waited)] += 1
            self._waited_s[key] += waited
        self._rows.hand_over(batch)
        if len(self._rows.in_hand) == 1:
            self._begin(batch)

    def _begin(self, batch: Batch) -> None:
        first: Request = batch.items[0].reply
        took = first.factor * self._one_of(first.picture.alone_s if batch.size == 1 else first.picture.full_s)
        self.events.at(self.events.now + took, self._batch_done, batch, took)

    def _batch_done(self, batch: Batch, took: float) -> None:
        self._rows.done(batch, took)
        if self._rows.in_hand:
            self._begin(self._rows.in_hand[0])
        for item in batch.items:
            self._computed(item.reply)
        self._dispatch()

    def _expire(self) -> None:
        for waiter in self._rows.expired():
            self._overtaken(waiter.reply)

    def _look_again(self) -> None:
        moment = max(self.events.now, self._rows.next_moment())
        if moment < self._next_look:
            self._next_look = max(self.events.now + 1e-6, moment)
            self.events.at(self._next_look, self._look)

    def _look(self) -> None:
        self._next_look = float("inf")
        self._dispatch()

    # -- what it says of itself

    def samples(self, pod: str) -> Iterator[tuple[str, Labels, float]]:
        """The metrics that rules ask for, as /metrics has them."""

        def labels(**more: str) -> Labels:
            return frozenset({"job": "sdc", "namespace": "sdc", "pod": pod, **more}.items())

        yield "sdc_slots", labels(), float(self.limits.slots)
        for operation in ITEMS_OF:
            yield "sdc_inflight", labels(op=operation), float(self.inside[operation])
        for reason, count in self.rejected.items():
            yield "sdc_rejected_total", labels(reason=reason), float(count)
        yield "sdc_queue_oldest_seconds", labels(), self._rows.oldest_s()
        waiting = Counter((waiter.operation, waiter.lane) for waiter in self._rows)
        for key, counts in self._waits.items():
            op, lane = key
            yield "sdc_queue_depth", labels(op=op, lane=lane), float(waiting[key])
            total = 0
            for bound, count in zip(BUCKETS_S, counts, strict=True):
                total += count
                yield "sdc_queue_wait_seconds_bucket", labels(op=op, lane=lane, le=_bound(bound)), float(total)
            yield "sdc_queue_wait_seconds_count", labels(op=op, lane=lane), float(total)
            yield "sdc_queue_wait_seconds_sum", labels(op=op, lane=lane), self._waited_s[key]


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)


def _bucket(picture: Picture) -> tuple[str, str]:
    return ITEMS_OF[picture.operation], picture.shape
