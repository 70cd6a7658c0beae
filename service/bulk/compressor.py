"""The one class that does the work, here and on a cluster: a batch of sources in, a batch of rows out.

Called synchronously, from one thread or several; inside, an event loop on a thread of its own runs the pipeline, so that batches which
overlap share the device's batches.  Must not know who calls it or what becomes of the rows.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import structlog

from service.batching.shared import SharedRuns
from service.bulk.room import Room
from service.bulk.rows import UNKNOWN, Columns, Row, Source, sources_of, to_columns
from service.bulk.sources import Reader
from service.errors import BadParameter, CorruptBlob, DeviceFailed, Gone, NotABlob, SdcError, StoreUnavailable, TooManyBytes
from service.imaging.opening import picture_size
from service.options import CompressOptions
from service.pipeline import Compressed, Pipeline, open_pipeline
from service.settings import Settings
from service.storage.blobs import BlobStore, Facts
from service.storage.keeping import add_tag, keep, tagged
from service.storage.objects import open_store

STORE_PAUSE_S, STORE_PATIENCE_S = 2.0, 60.0
"""a source for which a store failed is tried again after so long, and given up after so long"""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """What a Compressor needs to know; goes to other machines, whose environment has the credentials of the stores."""

    base: str
    """what names are below: absolute folder, or address"""
    destination: str
    """address of a store, laid out as the service's: a service that is given it serves what was made"""
    options: CompressOptions
    settings: Settings
    tag: str | None = None
    """a purge tag beside each picture"""
    revive: bool = False
    """whether pictures that were deleted are made again"""


class Cancelled(Exception):
    """The call was given up; no error of a caller's, and no class of asyncio's, which would end its thread."""


class Compressor:
    """Loads the model and opens the stores; then call it with batches.

    A batch has the columns of ``service.bulk.rows.Source``; what is returned has those of ``Row`` beside whatever others there were,
    sources in their order.  What is wrong with a picture is a row.

    The bytes of sources that are inside at once are bounded by ``max_bodies_bytes`` of the settings, the pixels of pictures by
    ``max_queued_pixels``, as in the service; but here whoever finds no room waits.

    Raises BadModel, DeviceFailed and StoreUnavailable, from the start; and from a call DeviceFailed when the device thread died, and
    Cancelled after ``cancel``.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._bodies, self._pixels = Room(job.settings.max_bodies_bytes), Room(job.settings.max_queued_pixels)
        self._running: SharedRuns[Compressed] = SharedRuns()
        self._reader = Reader(job.base, job.settings.store_timeout_s)
        self._blobs = BlobStore(open_store(job.destination, job.settings.store_timeout_s))
        self._tasks: set[asyncio.Task[Row]] = set()
        self._opened = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="compressor", daemon=True)
        self._thread.start()
        try:
            self._pipeline: Pipeline = self._on_loop(self._open())
        except BaseException:
            self.close()
            raise

    def __call__(self, batch: Mapping[str, Any]) -> Columns:
        """Compress and store what a batch names, and say what became of each."""
        sources = sources_of(batch)
        rows = self._on_loop(self._rows(sources))
        if self._pipeline.batcher.death is not None:
            raise DeviceFailed("the device thread died: start again, what is stored stays")
        return {**{name: list(values) for name, values in batch.items() if name != "problem"}, **to_columns(Row, rows)}

    def cancel(self) -> None:
        """Give up what is being done: calls that are waiting raise.  What is stored stays."""

        async def cancel_all() -> None:
            while self._tasks:
                for task in self._tasks:
                    task.cancel()
                # again, because asyncio.wait_for of Python 3.11 forgets to be cancelled in the moment that its call ends
                await asyncio.wait(self._tasks, timeout=0.1)

        asyncio.run_coroutine_threadsafe(cancel_all(), self._loop)

    def close(self) -> None:
        """Finish what is being done and give the device back."""
        self._on_loop(self._opened.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Compressor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _on_loop(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # -- all that follows runs on the event loop

    async def _open(self) -> Pipeline:
        await self._blobs.check()
        # the rooms are what bounds the pipeline: it would refuse instead of waiting
        settings = self._job.settings.model_copy(update={"max_queued_pixels": 1 << 62})
        return await self._opened.enter_async_context(open_pipeline(settings))

    async def _rows(self, sources: list[Source]) -> list[Row]:
        tasks = [asyncio.create_task(self._row(source)) for source in sources]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
        if any(task.cancelled() for task in tasks):
            raise Cancelled
        return [task.result() for task in tasks]

    async def _row(self, source: Source) -> Row:
        try:
            if source.problem:
                raise BadParameter(source.problem)
            return await self._patiently(source)
        except SdcError as error:
            return Row.of_failure(source, None, error)
        except Exception as error:
            structlog.get_logger().exception("bulk failed", source=source.source)
            return Row.of_failure(source, None, SdcError(f"{type(error).__name__}: the log has its trace"))

    async def _patiently(self, source: Source) -> Row:
        """Compress, and again where a store failed: one that is away for a moment shall not cost the pictures of that moment."""
        first: float | None = None
        while True:
            try:
                return await self._compress(source)
            except StoreUnavailable:
                first = first or time.monotonic()
                if time.monotonic() + STORE_PAUSE_S > first + STORE_PATIENCE_S:
                    raise
            await asyncio.sleep(STORE_PAUSE_S)

    async def _compress(self, source: Source) -> Row:
        size = await self._reader.size(source.source) if source.source_bytes == UNKNOWN else source.source_bytes
        if size > self._job.settings.max_body_bytes:
            raise TooManyBytes(f"{size:,} bytes; at most {self._job.settings.max_body_bytes:,} are accepted")
        async with self._bodies.taken(size):
            content = await self._reader.read(source.source)
            return await self._stored(source, content)

    async def _stored(self, source: Source, content: bytes) -> Row:
        """Look whether it is stored, and store it if not."""
        blob_id = await asyncio.to_thread(self._pipeline.id_of, content, self._job.options)
        stored, created = await self._blobs.read(blob_id), False
        if stored is None:
            if not self._job.revive and await self._blobs.was_deleted(blob_id):
                gone = Gone("this id was deleted from DEST: --revive makes it again")
                return Row.of_failure(Source(source.source, len(content)), blob_id, gone)
            compressed = await self._running.run(blob_id, lambda: self._made(content))
            stored, created = await keep(self._blobs, blob_id, compressed.content, self._facts(content, compressed))
        if not created and self._job.tag is not None:
            await add_tag(self._blobs, blob_id, self._job.tag)
        try:
            blob = self._pipeline.parse(stored)
        except (NotABlob, CorruptBlob):
            damaged = CorruptBlob(f"what DEST holds as {blob_id} is damaged: delete blobs/{blob_id}.sdc and run again")
            return Row.of_failure(Source(source.source, len(content)), blob_id, damaged)
        return Row(source.source, blob_id, "made" if created else "known", len(stored), blob.width, blob.height, len(content), None, None)

    async def _made(self, content: bytes) -> Compressed:
        settings = self._job.settings
        width, height = await asyncio.to_thread(picture_size, content, settings.max_pixels)
        async with self._pixels.taken(width * height):
            return await self._pipeline.compress(content, self._job.options, "bulk")

    def _facts(self, content: bytes, compressed: Compressed) -> Facts:
        glance = compressed.glance
        return {"source_bytes": len(content), "preview": glance.preview, "color": glance.color, **tagged(self._job.tag)}
