"""Bounds what is inside at once, and lets the rest wait.  Knows nothing of what is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """So much and no more: bytes, or pixels.  Who comes first goes in first, so that a large one is not passed by small ones for ever.

    Args:
        most: of the sum of what is inside; one alone is always let in.
    """

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0
        self._door = asyncio.Lock()
        self._left = asyncio.Event()

    @asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Be inside for the length of the block."""
        async with self._door:  # whoever waits for room holds the door shut
            while self._inside and self._inside + amount > self._most:
                self._left.clear()
                await self._left.wait()
            self._inside += amount
        try:
            yield
        finally:
            self._inside -= amount
            self._left.set()
