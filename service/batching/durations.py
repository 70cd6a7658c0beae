"""How long a batch takes: learned from what batches took, asked for when promises are made.  Knows nothing of queues or threads."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

FRESHNESS = 0.2
"""weight of the newest measurement"""
KEPT_PROMISES = 0.95
"""share of the pictures let in that ``Margin`` wants to be done when it was said"""
OF_LATE = 60
"""pictures"""
REMEMBERED = 1024
"""buckets whose own times are kept; the longest unused is forgotten first"""
REACH = 4.0
"""standard deviations of the sizes seen, from their mean: so far a line through them is off by no more than about the noise of one sight"""


@dataclass
class _Line:
    """seconds = slope * pixels + offset, by least squares over what was seen, older sights fading."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def learn(self, pixels: float, seconds: float) -> None:
        keep = 1 - FRESHNESS / 4
        self.n, self.x, self.y = self.n * keep + 1, self.x * keep + pixels, self.y * keep + seconds
        self.xx, self.xy = self.xx * keep + pixels * pixels, self.xy * keep + pixels * seconds

    def predict(self, pixels: float) -> float:
        if not self.n:
            return 0.0
        slope = self._slope()
        offset = (self.y - slope * self.x) / self.n
        if slope < 0 or offset < 0:  # too little seen to tell the two apart: in proportion
            return pixels * self.y / self.x if self.x else 0.0
        return slope * pixels + offset

    def predict_seen(self, pixels: float) -> float:
        """No farther than what was seen reaches; the mean, where nothing tells that more takes longer."""
        if not self.n:
            return 0.0
        if self._slope() < 0:
            return self.y / self.n
        mean = self.x / self.n
        reach = mean + REACH * math.sqrt(max(0.0, self.xx / self.n - mean * mean))
        return self.predict(min(pixels, reach))

    def _slope(self) -> float:
        """Negative where sizes are too much alike to have one."""
        spread = self.n * self.xx - self.x * self.x
        return (self.n * self.xy - self.x * self.y) / spread if spread > 1e-9 * self.n * self.xx else -1.0


class Durations:
    """Seconds of a batch of ``size`` items (padding included) of one operation and shape."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[Hashable, _Line]] = {}
        """by operation and kind"""
        self._seen: OrderedDict[tuple[str, Hashable, int], float] = OrderedDict()

    def learn(self, operation: str, shape: Hashable, size: int, pixels: int, seconds: float, kind: Hashable = None) -> None:
        """``pixels`` are those of one item; a ``shape`` of None says nothing of a bucket, only of the operation.

        What takes other times for as many pixels is of another ``kind``, whatever the shape.
        """
        self._lines.setdefault(operation, {}).setdefault(kind, _Line()).learn(size * pixels, seconds)
        if shape is None:
            return
        key = (operation, shape, size)
        known = self._seen.pop(key, seconds)
        self._seen[key] = known + FRESHNESS * (seconds - known)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def predict(self, operation: str, shape: Hashable, size: int, pixels: int, kind: Hashable = None) -> float:
        """What this bucket took at this size, or else what the operation takes for so many pixels; 0 where nothing is known.

        Of a kind that was never seen it is believed that it takes what the first does.
        """
        known = self._seen.get((operation, shape, size))
        if known is not None:
            return known
        lines = self._lines.get(operation)
        return lines.get(kind, next(iter(lines.values()))).predict(size * pixels) if lines else 0.0

    def predict_seen(self, operation: str, pixels: int) -> float:
        """What an operation takes for so many pixels, or for the most of which something is known: what lies beyond is taken to fit.

        For what nobody tries at the start, and most of which is the same for every size: in proportion, icons would say minutes of a photo.
        """
        line = self._lines.get(operation, {}).get(None)
        return line.predict_seen(pixels) if line else 0.0

    def best_size(self, operation: str, shape: Hashable, waiting: int, pixels: int, largest: int) -> int:
        """1 or ``largest``: which gets ``waiting`` items done sooner, padding paid for.

        A size never tried is believed to take its share: then a batch is worth it from more than half full on.
        """
        most = min(waiting, largest)
        if most <= 1:
            return 1
        alone, together = self._seen.get((operation, shape, 1)), self._seen.get((operation, shape, largest))
        if alone is None or together is None:
            return largest if 2 * most > largest else 1
        return largest if together <= most * alone else 1


class Margin:
    """By how many seconds pictures miss what was said when they were let in, all of late but a few; never under 0.

    A queue whose admission believes its own prediction is, under overload, always exactly as long as the deadline: half of what it
    computes then comes too late.
    """

    def __init__(self) -> None:
        self._missed_by: deque[float] = deque(maxlen=OF_LATE)
        self.seconds = 0.0

    def learn(self, promised_s: float, took_s: float) -> None:
        self._missed_by.append(took_s - promised_s)
        self.seconds = max(0.0, sorted(self._missed_by)[int(KEPT_PROMISES * len(self._missed_by))])
