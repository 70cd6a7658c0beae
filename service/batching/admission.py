"""Who is let in: how much room there is, what is ahead, what it will take, and how far such reckonings were off of late.

Knows nothing of batches, threads or futures; everything happens on the event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from service.batching.durations import Durations, Margin
from service.batching.refusals import too_short
from service.batching.waiting import LANES, Lane
from service.errors import DeadlineMissed, Overloaded
from service.telemetry import metrics

FORGETTING = 1.01
"""with every picture that asks, the smallest need known grows so much, until one is as small again"""
VAIN = 5
"""so many refused or too late in an idle service, and the next is let in whatever was learned in a busier hour: nobody would ever find out
that it is wrong"""


class Expected:
    """Seconds of work that was admitted and has not come yet, by lane."""

    def __init__(self) -> None:
        self._seconds: dict[Lane, float] = dict.fromkeys(LANES, 0.0)

    def add(self, lane: Lane, seconds: float) -> None:
        self._seconds[lane] = max(0.0, self._seconds[lane] + seconds)

    def before(self, lane: Lane) -> float:
        """What goes before an item of this lane that comes now."""
        return self._seconds[lane] if lane == "interactive" else sum(self._seconds.values())


@dataclass
class Claim:
    """What a picture that was let in still needs, and what it was promised."""

    operation: str
    pixels: int
    to_come: int
    """pixels of the items that were not submitted yet; together more than the picture's where they overlap"""
    lane: Lane
    deadline: float
    device_s: float
    """of the device, for what was not submitted yet"""
    processor_s: float
    """of the processor, for what was not done yet"""
    promised_s: float
    """from admission to the end; 0 where nothing was known"""
    since: float
    kind: Hashable = None
    """see ``Durations.learn``"""
    held: int = 0
    """pixels that it counts for while it is inside"""
    spent_s: float = field(default=0.0, init=False)
    """of the processor"""
    waited_s: float = field(default=0.0, init=False)
    """for its turn to be begun; counts towards the wait of its first item"""

    @property
    def latest(self) -> float:
        """When to go on with it, if it shall be done by its deadline."""
        return self.deadline - self.device_s - self.processor_s


class Admission:
    """Keeps the books of those inside, and answers those who ask to come in.

    Args:
        operations: their names.
        max_pixels: pictures beyond this sum are refused; one alone is always taken.
        threads: of the processor.
        durations: what batches took, and what the processor took for whole pictures.
        device_wait_s: seconds until the device has done what reached it already and goes before this lane.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        operations: list[str],
        max_pixels: int,
        threads: int,
        durations: Durations,
        device_wait_s: Callable[[Lane], float],
        clock: Callable[[], float],
    ) -> None:
        self._max_pixels, self._threads, self._durations = max_pixels, threads, durations
        self._device_wait_s, self._clock = device_wait_s, clock
        self._pixels_inside = 0
        self._for_device, self._for_processor = Expected(), Expected()
        self._margins = {operation: Margin() for operation in operations}
        self._in_vain = 0
        """who was refused by an idle service, or overtaken by a deadline, since a picture was last finished"""
        self._least_s: dict[str, float] = {}
        """by operation: what the smallest of the pictures that asked lately needed"""

    def wait_s(self, lane: Lane) -> float:
        """Seconds until the work ahead of a picture that comes now is done, on the device or on the processor, whichever is behind."""
        return max(self._device_wait_s(lane) + self._for_device.before(lane), self._for_processor.before(lane) / self._threads)

    def claim(
        self,
        operation: str,
        pixels: int,
        lane: Lane,
        deadline: float,
        submitted: int | None = None,
        kind: Hashable = None,
        largest: int = 0,
    ) -> Claim:
        """What a picture of ``pixels``, padded, may count on; its items together have ``submitted``, where that is not the same.

        ``kind``: see ``Durations.learn``.  ``largest``: pixels of its largest item; it is that which takes room, where it is more.

        Raises Overloaded where there is no room or no time for it, and DeadlineMissed where it needs more time by itself.
        """
        wait, held = self.wait_s(lane), max(pixels, largest)
        if self._pixels_inside and self._pixels_inside + held > self._max_pixels:
            metrics.REJECTED.labels(reason="queue-full").inc()
            raise Overloaded("the queue is full", retry_after_s=whole_seconds(wait))
        to_come = pixels if submitted is None else submitted
        device_s = self._durations.predict(operation, None, 1, to_come, kind)
        processor_s = self._durations.predict_seen(_processor(operation), pixels)
        needed = device_s + processor_s
        self._least_s[operation] = min(needed, FORGETTING * self._least_s.get(operation, math.inf))
        self._refuse_late(operation, wait, needed, deadline)
        if self._doubtful:
            deadline = math.inf  # it shall be finished, and teach, even if it comes too late
        return Claim(operation, pixels, to_come, lane, deadline, device_s, processor_s, wait + needed, self._clock(), kind, held)

    def refuse_hopeless(self, operation: str, deadline: float, lane: Lane) -> None:
        """Raise as ``claim`` does where not even the smallest picture of late could be done in time."""
        self._refuse_late(operation, self.wait_s(lane), self._least_s.get(operation, 0.0), deadline)

    def _refuse_late(self, operation: str, wait: float, needed: float, deadline: float) -> None:
        idle, left = not self._pixels_inside, deadline - self._clock()
        margin = 0.0 if idle else self._margins[operation].seconds
        if (0.0 if self._doubtful else wait + needed + margin) <= left:
            return
        self._in_vain += idle
        if needed > left:  # here, or anywhere: no more replicas are called for
            raise too_short(needed, left)
        metrics.REJECTED.labels(reason="deadline-unreachable").inc()
        why = f"about {1000 * (wait + margin):.0f} ms of other work are ahead and this needs {1000 * needed:.0f} ms"
        raise Overloaded(f"the deadline cannot be met: {1000 * left:.0f} ms are left, {why}", retry_after_s=whole_seconds(wait))

    @property
    def _doubtful(self) -> bool:
        """Whether what is known of durations has let nobody through for so long that it should be tried again."""
        return not self._pixels_inside and self._in_vain >= VAIN

    def enter(self, claim: Claim) -> None:
        """A picture is inside."""
        self._pixels_inside += claim.held
        self._for_device.add(claim.lane, claim.device_s)
        self._for_processor.add(claim.lane, claim.processor_s)

    def submitted(self, claim: Claim, pixels: int) -> None:
        """So much of a picture waits for the device now, where it is counted from here on."""
        seconds = claim.device_s * pixels / max(pixels, claim.to_come)
        claim.to_come -= pixels
        claim.device_s -= seconds
        self._for_device.add(claim.lane, -seconds)

    def processed(self, claim: Claim, seconds: float) -> None:
        """The processor has worked on a picture."""
        claim.spent_s += seconds
        expected = min(claim.processor_s, seconds)
        claim.processor_s -= expected
        self._for_processor.add(claim.lane, -expected)

    def leave(self, claim: Claim, failure: object) -> None:
        """A picture is done, or what became of it: takes back what it still claimed, and learns.

        Args:
            claim: of a picture that had entered.
            failure: class of the exception that ended it, or None.
        """
        left_s = claim.device_s + claim.processor_s
        self._pixels_inside -= claim.held
        self._for_device.add(claim.lane, -claim.device_s)
        self._for_processor.add(claim.lane, -claim.processor_s)
        claim.device_s = claim.processor_s = 0.0
        if failure is None and claim.spent_s:
            self._durations.learn(_processor(claim.operation), None, 1, claim.pixels, claim.spent_s)
        if claim.promised_s and (failure is None or failure is DeadlineMissed):
            took_s = self._clock() - claim.since + (left_s if failure else 0.0)
            self._margins[claim.operation].learn(claim.promised_s, took_s)
        if failure is None:
            self._in_vain = 0
        elif failure is DeadlineMissed:
            self._in_vain += 1


def _processor(operation: str) -> str:
    """The name under which the processor's part of an operation is learned."""
    return f"{operation} aside"


def whole_seconds(seconds: float) -> int:
    """For Retry-After: rounded up, at least 1."""
    return max(1, math.ceil(seconds))
