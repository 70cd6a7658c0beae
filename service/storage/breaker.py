"""A store that does not answer is left alone for a while, so that nobody waits for it in vain.  Knows nothing of stores.

The circuit breaker of M. Nygard, "Release It!" (2007).  pybreaker, the usual library, takes a cancelled call for a failure and lets
everybody through at once when the pause ends.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import StoreUnavailable

FAILURES = 5
"""so many in a row, and the pause begins"""
PAUSE_S = 5.0
JITTER = 0.25
"""of the pause: replicas shall not all knock at once"""


class Breaker:
    """Counts failures in a row; refuses while there were too many, and lets one call through when the pause is over.

    Args:
        told: called with True when the pause begins and with False when it is over for good.
        clock: monotonic seconds.
    """

    def __init__(self, told: Callable[[bool], None] = lambda _: None, clock: Callable[[], float] = time.monotonic) -> None:
        self._told, self._clock = told, clock
        self._failures = 0
        self._until = -math.inf
        """end of the pause"""
        self._trying = False
        """whether the one call is under way that is let through after a pause"""
        told(False)

    @property
    def open(self) -> bool:
        """Whether calls are refused, but for one at a time when a pause is over."""
        return self._failures >= FAILURES

    @contextmanager
    def trying(self) -> Iterator[None]:
        """A call to the store.  Raises StoreUnavailable without making it during the pause.

        StoreUnavailable from inside is a failure, any other end but being cancelled an answer.
        """
        trial = self.open
        if trial and (self._trying or self._clock() < self._until):
            raise StoreUnavailable("the store did not answer lately and is left alone for some seconds")
        self._trying = self._trying or trial
        try:
            yield
        except StoreUnavailable:
            self._failed()
            raise
        except Exception:
            self._answered()
            raise
        else:
            self._answered()
        finally:
            if trial:
                self._trying = False

    def _failed(self) -> None:
        self._failures += 1
        if self.open:
            self._until = self._clock() + PAUSE_S * random.uniform(1 - JITTER, 1 + JITTER)
            self._told(True)

    def _answered(self) -> None:
        if self.open:
            self._told(False)
        self._failures = 0
