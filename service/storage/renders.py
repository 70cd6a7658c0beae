"""Rendered pictures, kept until there is no more room.  Everything here can be made again: safe to delete at any time.

    renders/<id>/<variant>

On this machine's disk the least recently used go first.  On an object store nothing is thrown away: a lifecycle rule on the
prefix does that, without anybody asking what is there.  In front of either stand the last used, in this process's memory.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine

import structlog

from service.errors import StoreUnavailable
from service.storage.objects import Objects
from service.telemetry import metrics

PREFIX = "renders"


class RenderCache:
    """Bytes by blob and variant.

    Args:
        objects: where they are kept.
        max_bytes: of all together, where the place is this machine's; 0 keeps nothing there.
        memory_bytes: of those kept in memory beside it.

    A store that fails is a miss, logged and counted: the picture is made again.
    """

    def __init__(self, objects: Objects, max_bytes: int, memory_bytes: int = 0) -> None:
        self._objects, self._max_bytes, self._memory_bytes = objects, max_bytes, min(memory_bytes, max_bytes)
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        """least recently used first"""
        self._bytes_in_memory = 0
        self._bounded = objects.ours
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """least recently used first; only where bounded"""
        self._bytes = 0
        self._stock: asyncio.Task[None] | None = None
        self._forgotten: set[str] = set()
        """ids that were while stock was taken: what it found of them is gone"""
        self._working: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begin to take stock of what an earlier process left; ``close`` waits for the end.

        In the background: of hundreds of thousands of pictures that takes longer than anybody waits for a start.
        """
        if self._bounded:
            self._stock = self._in_background(self._take_stock())

    async def _take_stock(self) -> None:
        try:
            await self._objects.tidy(PREFIX)
            for path, size in reversed(await self._objects.list(f"{PREFIX}/", in_time=False)):
                if path not in self._sizes and path.split("/")[1] not in self._forgotten:
                    self._note(path, size)
                    self._sizes.move_to_end(path, last=False)  # what came meanwhile is younger
            await self._evict()
        except StoreUnavailable as error:
            self._failed(error)

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task

    def in_memory(self, blob_id: str, variant: str) -> bytes | None:
        """The picture, where it can be had without waiting."""
        path = _path(blob_id, variant)
        content = self._memory.get(path)
        if content is not None:
            self._memory.move_to_end(path)
            metrics.RENDER_CACHE.labels(result="hit").inc()
        return content

    async def read(self, blob_id: str, variant: str) -> bytes | None:
        """The picture, or None."""
        path = _path(blob_id, variant)
        if not self._max_bytes:
            metrics.RENDER_CACHE.labels(result="miss").inc()
            return None
        try:
            content = await self._objects.read(path)
        except StoreUnavailable as error:
            self._failed(error)
            return None
        if content is None:
            self._forget(path)
        else:
            self._remember(path, content)
            if self._bounded:
                self._note(path, len(content))  # used last; another process on the same folder may have made it
        metrics.RENDER_CACHE.labels(result="miss" if content is None else "hit").inc()
        return content

    def size(self, blob_id: str, variant: str) -> int | None:
        """Length of the picture where it is known without asking."""
        path = _path(blob_id, variant)
        return len(self._memory[path]) if path in self._memory else self._sizes.get(path)

    def keep(self, blob_id: str, variant: str, content: bytes) -> asyncio.Task[None] | None:
        """Remember, and write in the background: the task that does, which nobody need wait for, or None where it is not to be written."""
        self._remember(_path(blob_id, variant), content)
        if not self._max_bytes or len(content) > self._max_bytes:
            return None
        return self._in_background(self._write(_path(blob_id, variant), content))

    async def forget(self, blob_id: str) -> None:
        """Delete every picture of a blob, those that are being written included.  Raises StoreUnavailable."""
        if self._stock is not None and not self._stock.done():  # which takes too long to be waited for
            self._forgotten.add(blob_id)
        writing = self._working - {self._stock}
        if writing:
            await asyncio.wait(writing)  # and not gather: they are not this caller's, to be cancelled with him
        for path in [path for path in self._memory if path.startswith(f"{PREFIX}/{blob_id}/")]:
            self._bytes_in_memory -= len(self._memory.pop(path))
        metrics.RENDER_CACHE_MEMORY_BYTES.set(self._bytes_in_memory)
        for path, _ in await self._objects.list(f"{PREFIX}/{blob_id}/"):
            await self._objects.delete(path)
            self._forget(path)
        metrics.RENDER_CACHE_BYTES.set(self._bytes)

    async def close(self) -> None:
        """Wait for what is being written, and for the stock."""
        await asyncio.gather(*self._working)

    async def _write(self, path: str, content: bytes) -> None:
        try:
            await self._objects.write(path, content)
            if self._bounded:
                self._note(path, len(content))
                await self._evict()
        except StoreUnavailable as error:
            self._failed(error)

    async def _evict(self) -> None:
        while self._bytes > self._max_bytes and self._sizes:
            path = next(iter(self._sizes))
            self._forget(path)
            await self._objects.delete(path)
            metrics.RENDER_CACHE.labels(result="evicted").inc()
        metrics.RENDER_CACHE_BYTES.set(self._bytes)

    def _remember(self, path: str, content: bytes) -> None:
        if len(content) > self._memory_bytes:
            return
        self._bytes_in_memory += len(content) - len(self._memory.pop(path, b""))
        self._memory[path] = content
        while self._bytes_in_memory > self._memory_bytes:
            self._bytes_in_memory -= len(self._memory.popitem(last=False)[1])
        metrics.RENDER_CACHE_MEMORY_BYTES.set(self._bytes_in_memory)

    def _note(self, path: str, size: int) -> None:
        self._forget(path)
        self._sizes[path] = size
        self._bytes += size

    def _forget(self, path: str) -> None:
        self._bytes -= self._sizes.pop(path, 0)

    def _failed(self, error: StoreUnavailable) -> None:
        metrics.RENDER_CACHE.labels(result="failed").inc()
        structlog.get_logger().warning("the render cache failed", detail=error.detail, cause=repr(error.__cause__))


def _path(blob_id: str, variant: str) -> str:
    return f"{PREFIX}/{blob_id}/{variant}"
