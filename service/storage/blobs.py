"""Named bytes that are written once: blobs, their sidecars and the marks of deleted ones.

    blobs/<id>.sdc     the blob
    blobs/<id>.json    what is known beside it
    deleted/<id>       the id was deleted; a new write takes the mark away

obstore is called synchronously, on threads: its asynchronous calls finish on threads of their own, and one that is still at it when a
short-lived process ends aborts the process (seen in 1 of 10 runs; pyo3-async-runtimes issue 40).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from service.errors import NotFound, StoreUnavailable

ID_PATTERN = re.compile(r"[a-z2-7]{26}")

CONCURRENT_CALLS = 16

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def open_store(url: str) -> ObjectStore:
    """``file:///folder`` (made if missing), ``memory:///`` or anything obstore reads; raises StoreUnavailable."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "file":
            folder = Path(unquote(parts.path))
            folder.mkdir(parents=True, exist_ok=True)
            return LocalStore(folder)
        if parts.scheme == "memory":
            return MemoryStore()
        return from_url(url)
    except (OSError, ValueError, BaseError) as error:
        raise StoreUnavailable(f"the store {parts.scheme}:// cannot be opened: {_first_line(error)}") from error


class BlobStore:
    """Write-once storage of blobs by id.

    Every method raises StoreUnavailable when the store fails, and NotFound for an id that cannot be one.
    """

    def __init__(self, store: ObjectStore, timeout_s: float = 10.0) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(CONCURRENT_CALLS, thread_name_prefix="store")

    async def create(self, blob_id: str, blob: bytes, sidecar: bytes) -> bool:
        """Store a blob unless the id is taken; returns whether this call stored it.  Never visible in part.

        The sidecar goes first, so that a blob which can be seen has one, but for a store that failed in between: readers must do
        without.  Whoever loses a race re-reads what was stored.
        """
        _check(blob_id)
        first = await self._create(f"blobs/{blob_id}.json", sidecar)
        try:
            created = await self._create(f"blobs/{blob_id}.sdc", blob)
        except StoreUnavailable:
            if first:  # a full disk takes the small file and not the large one: leave neither
                await self._delete(f"blobs/{blob_id}.json")
            raise
        if created:
            await self._delete(f"deleted/{blob_id}")
        return created

    async def read(self, blob_id: str) -> bytes | None:
        """The blob, or None when there is none."""
        return await self._read(f"blobs/{_check(blob_id)}.sdc")

    async def read_sidecar(self, blob_id: str) -> bytes | None:
        return await self._read(f"blobs/{_check(blob_id)}.json")

    async def size(self, blob_id: str) -> int | None:
        """Length of the blob without reading it, or None when there is none."""
        try:
            meta = await self._call(obstore.head, self._store, f"blobs/{_check(blob_id)}.sdc")
        except FileNotFoundError:
            return None
        return int(meta["size"])

    async def was_deleted(self, blob_id: str) -> bool:
        return await self._read(f"deleted/{_check(blob_id)}") is not None

    async def delete(self, blob_id: str) -> bool:
        """Delete blob and sidecar and remember that they were; False when there was nothing."""
        if await self.size(blob_id) is None:
            return False
        await self._call(obstore.put, self._store, f"deleted/{blob_id}", b"")
        await self._delete(f"blobs/{blob_id}.sdc")
        await self._delete(f"blobs/{blob_id}.json")
        return True

    async def check(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        await self._read("deleted/probe")

    async def _create(self, path: str, content: bytes) -> bool:
        try:
            await self._call(obstore.put, self._store, path, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    async def _read(self, path: str) -> bytes | None:
        try:
            return await self._call(lambda: bytes(obstore.get(self._store, path).bytes()))
        except FileNotFoundError:
            return None

    async def _delete(self, path: str) -> None:
        try:
            await self._call(obstore.delete, self._store, path)
        except FileNotFoundError:
            pass

    async def _call(self, call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*args, **kwargs))
            return await asyncio.wait_for(running, self._timeout_s)
        except (FileNotFoundError, AlreadyExistsError):
            raise
        except TimeoutError as error:
            raise StoreUnavailable(f"the store did not answer within {self._timeout_s:g} s") from error
        except (OSError, BaseError) as error:
            raise StoreUnavailable("the store failed: its own words are in the service's log") from error


def _check(blob_id: str) -> str:
    if not ID_PATTERN.fullmatch(blob_id):
        raise NotFound("an id is 26 characters of a-z and 2-7")
    return blob_id


def _first_line(error: Any) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
