"""Of several replicas that want the same picture at the same moment one makes it; the others wait for it.

    leases/<name of the picture>.<generation>

Whoever creates an object of that name has the lease, and takes it away when the picture is in the store.  A lease that somebody has watched
for ``lease_s``, or that is plainly older, is of a process that died: the next generation may be taken, which again only one can.

Knows nothing of how pictures are made.  A store that fails gives everybody a lease: a picture made twice is better than none.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress

import structlog

from service.errors import StoreUnavailable
from service.storage.objects import Objects
from service.telemetry import metrics

PREFIX = "leases"
SKEW_S = 60.0
"""by which clocks of replicas and store may differ"""
FIRST_LOOK_S, LAST_LOOK_S = 0.05, 0.5
"""the pause between two looks whether a lease is still there grows from the one to the other"""


class Lease:
    """The right to make one picture, until it is released."""

    def __init__(self, objects: Objects, paths: list[str]) -> None:
        self._objects, self._paths = objects, paths

    async def release(self) -> None:
        """Let others try, or find what was made; also what a dead process left of the same picture."""
        try:
            for path in self._paths:
                await self._objects.delete(path)
        except StoreUnavailable as error:
            _failed(error)


class Leases:
    """Leases on one store.

    Args:
        objects: where they are kept; all replicas use the same.
        lease_s: how long a lease is respected; 0: there are none.
        clock: monotonic seconds.
        pause: waits for so many seconds.
    """

    def __init__(
        self,
        objects: Objects,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._objects, self._lease_s, self._clock, self._pause = objects, lease_s, clock, pause
        self._working: set[asyncio.Task[None]] = set()

    async def take(self, name: str, deadline: float) -> Lease | None:
        """The right to make a picture, or None where another replica has given its own back, having made it or not.

        ``name`` is the picture's, and has no slashes: a folder store keeps the folders that it makes.
        Waits while another has it.  Raises TimeoutError at ``deadline``, on the monotonic clock.  Whoever is cancelled leaves no lease.
        """
        if not self._lease_s:
            return Lease(self._objects, [])
        paths: list[str] = []
        while True:
            paths.append(f"{PREFIX}/{name}.{len(paths)}")
            try:
                if await self._created(paths):
                    metrics.LEASES.labels(result="expired" if len(paths) > 1 else "taken").inc()
                    return Lease(self._objects, paths)
                if await self._given_back(paths[-1], deadline):
                    metrics.LEASES.labels(result="awaited").inc()
                    return None
            except StoreUnavailable as error:
                _failed(error)
                return Lease(self._objects, [])

    async def _created(self, paths: list[str]) -> bool:
        """Whether this call made the last of the paths, which gives the right to all of them."""
        creating = asyncio.ensure_future(self._objects.create(paths[-1], f"{os.getpid()}".encode()))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:  # which does not stop a write that is under way: what comes of it would be nobody's
            self._in_background(self._undone(creating, Lease(self._objects, paths)))
            raise

    async def _undone(self, creating: asyncio.Future[bool], lease: Lease) -> None:
        with suppress(StoreUnavailable):
            if await creating:
                await lease.release()

    async def _given_back(self, path: str, deadline: float) -> bool:
        """Whether a lease was given back within the time that it is respected."""
        seen, pause_s = self._clock(), FIRST_LOOK_S
        while self._clock() - seen < self._lease_s:
            age_s = await self._objects.age_s(path)
            if age_s is None:
                return True
            if age_s > self._lease_s + SKEW_S:
                return False
            if self._clock() + pause_s > deadline:
                raise TimeoutError
            await self._pause(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(LAST_LOOK_S, 1.5 * pause_s)
        return False

    def release_after(self, lease: Lease, written: Awaitable[None] | None) -> None:
        """Give a lease back in the background, when the picture can be found."""

        async def release() -> None:
            if written is not None:
                await asyncio.wait([asyncio.ensure_future(written)])  # whatever becomes of it
            await lease.release()

        self._in_background(release())

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def close(self) -> None:
        """Wait until all that were given back are."""
        await asyncio.gather(*self._working)


def _failed(error: StoreUnavailable) -> None:
    metrics.LEASES.labels(result="failed").inc()
    structlog.get_logger().warning("a lease failed", detail=error.detail, cause=repr(error.__cause__))
