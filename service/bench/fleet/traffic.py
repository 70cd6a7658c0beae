"""A day of requests that reach the service, past every cache in front of it: night, morning ramp, lunch dip, evening peak, a flash sale.

The same seed gives the same day.  Knows nothing of replicas.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.bench.fleet.measured import Measured, Picture

DAY_S = 86400.0
CURVE: tuple[tuple[float, float], ...] = (
    (0, 0.30), (1, 0.18), (3, 0.08), (5, 0.08), (7, 0.30), (9, 0.75), (11, 0.85), (12.5, 0.60), (14, 0.80), (17, 0.75), (20, 1.0),
    (21.5, 0.9), (24, 0.30),
)  # fmt: skip
"""hour, and requests as a share of the evening's peak; straight lines between"""
STEP_S = 10.0


@dataclass(frozen=True)
class Sale:
    """Rises in a minute when the mail is out, stays while it lasts, and ebbs away."""

    begins_s: float = 18 * 3600.0
    factor: float = 3.0
    """times what there would be without it"""
    rise_s: float = 60.0
    lasts_s: float = 900.0
    ebb_s: float = 1800.0

    def at(self, now: float) -> float:
        """Times the day's own curve."""
        height = np.interp(now - self.begins_s, (0, self.rise_s, self.lasts_s, self.lasts_s + self.ebb_s), (0, 1, 1, 0))
        return 1 + (self.factor - 1) * float(height)

    @property
    def ends_s(self) -> float:
        return self.begins_s + self.lasts_s + self.ebb_s


@dataclass(frozen=True)
class Day:
    """Who comes when.

    Args:
        peak: requests a second of the evening.
        compress_share: of all requests; the rest are renders.
        sale: None leaves it out.
        seed: another one is another day of the same kind.
    """

    peak: float
    compress_share: float = 0.1
    sale: Sale | None = Sale()
    seed: int = 1

    def rate(self, now: float) -> float:
        """Requests a second, in the mean."""
        hours, shares = zip(*CURVE, strict=True)
        return self.peak * float(np.interp(now / 3600, hours, shares)) * (self.sale.at(now) if self.sale else 1.0)

    def arrivals(self, measured: Measured, begins: float = 0.0, ends: float = DAY_S) -> Iterator[tuple[float, Picture]]:
        """A Poisson process of this rate; each of the pictures that were measured is as likely as the others of its operation."""
        counts, rng = np.random.default_rng(self.seed), random.Random(self.seed)
        kinds = {operation: measured.of(operation) for operation in ("compress", "render")}
        for step in np.arange(begins, ends, STEP_S):
            length = min(STEP_S, ends - step)
            many = int(counts.poisson(length * self.rate(step + length / 2)))
            for moment in sorted(rng.random() for _ in range(many)):
                yield float(step) + length * moment, rng.choice(kinds["compress" if rng.random() < self.compress_share else "render"])
