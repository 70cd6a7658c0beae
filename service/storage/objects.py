"""Named bytes on a folder, in memory or on any object store; failures in words of our own.

obstore is called synchronously, on threads: its asynchronous calls finish on threads of their own, and one that is still at it when a
short-lived process ends aborts the process (seen in 1 of 10 runs; pyo3-async-runtimes issue 40).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from service.errors import StoreTooSlow, StoreUnavailable

CONCURRENT_CALLS = 16

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Objects:
    """Bytes by path.  Every method raises StoreUnavailable when the store fails or does not answer within ``timeout_s``."""

    def __init__(self, store: ObjectStore, timeout_s: float = 10.0) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(CONCURRENT_CALLS, thread_name_prefix="store")

    @property
    def ours(self) -> bool:
        """Whether the place is this machine's, so that nobody else tidies it up."""
        return isinstance(self._store, (LocalStore, MemoryStore))

    async def create(self, path: str, content: bytes) -> bool:
        """Write unless the path is taken; returns whether this call wrote it.  Never visible in part."""
        try:
            await self._call(obstore.put, self._store, path, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    async def write(self, path: str, content: bytes) -> None:
        """Write or overwrite.  Never visible in part."""
        await self._call(obstore.put, self._store, path, content)

    async def read(self, path: str) -> bytes | None:
        """The bytes, or None when there are none."""
        try:
            return await self._call(lambda: bytes(obstore.get(self._store, path).bytes()))
        except FileNotFoundError:
            return None

    async def size(self, path: str) -> int | None:
        """Length without reading, or None when there is nothing."""
        try:
            meta = await self._call(obstore.head, self._store, path)
        except FileNotFoundError:
            return None
        return int(meta["size"])

    async def delete(self, path: str) -> None:
        """Delete; nothing happens where there is nothing."""
        try:
            await self._call(obstore.delete, self._store, path)
        except FileNotFoundError:
            pass

    async def list(self, prefix: str) -> list[tuple[str, int]]:
        """Path and size of everything under a prefix, what was written longest ago first."""

        def listed() -> list[tuple[str, int]]:
            found = [each for part in obstore.list(self._store, prefix=prefix) for each in part]
            return [(each["path"], int(each["size"])) for each in sorted(found, key=lambda each: each["last_modified"])]

        return await self._call(listed)

    async def _call(self, call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*args, **kwargs))
            return await asyncio.wait_for(running, self._timeout_s)
        except (FileNotFoundError, AlreadyExistsError):
            raise
        except TimeoutError as error:
            raise StoreTooSlow(f"the store did not answer within {self._timeout_s:g} s") from error
        except (OSError, BaseError) as error:
            raise StoreUnavailable("the store failed: its own words are in the service's log") from error


def open_store(url: str, timeout_s: float = 10.0) -> Objects:
    """``file:///folder`` (made if missing), ``memory:///`` or anything obstore reads; raises StoreUnavailable."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "file":
            folder = Path(unquote(parts.path))
            folder.mkdir(parents=True, exist_ok=True)
            return Objects(LocalStore(folder), timeout_s)
        if parts.scheme == "memory":
            return Objects(MemoryStore(), timeout_s)
        return Objects(from_url(url), timeout_s)
    except (OSError, ValueError, BaseError) as error:
        raise StoreUnavailable(f"the store {parts.scheme}:// cannot be opened: {_first_line(error)}") from error


def _first_line(error: Any) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
