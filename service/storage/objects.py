"""Named bytes on a folder, in memory or on any object store; failures in words of our own.

Requests to an object store are made again by obstore itself, with jitter, while there is time.  One that does not answer for long is left
alone for some seconds (``service.storage.breaker``); reading and writing apart, because a store that is full can still be read.

obstore is called synchronously, on threads: its asynchronous calls finish on threads of their own, and one that is still at it when a
short-lived process ends aborts the process (seen in 1 of 10 runs; pyo3-async-runtimes issue 40).
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from service.errors import BadParameter, StoreTooSlow, StoreUnavailable, first_line
from service.storage.breaker import Breaker
from service.telemetry import metrics

if TYPE_CHECKING:
    from obstore import ObjectMeta

CONCURRENT_CALLS = 16
YOUNG_S = 60.0
"""an empty folder that is younger may be one that something is being written into"""
RETRIES = 3
PLAIN_HTTP = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP", "AZURE_STORAGE_ENDPOINT", "AZURE_ALLOW_HTTP")
"""variables of obstore by which somebody says that the store is to be asked without TLS: an address of http, or the permission"""

Operation = Literal["create", "write", "read", "size", "delete", "list"]
Access = Literal["read", "write"]
ACCESS: dict[Operation, Access] = {
    "create": "write", "write": "write", "delete": "write", "read": "read", "size": "read", "list": "read",
}  # fmt: skip

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Objects:
    """Bytes by path.  Every method raises StoreUnavailable when the store fails or does not answer within ``timeout_s``."""

    def __init__(self, store: ObjectStore, timeout_s: float = 10.0) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(CONCURRENT_CALLS, thread_name_prefix="store")
        self._breakers: dict[Access, Breaker] = {}
        if not self.ours:  # a disk that fails, fails at once: nothing is saved by not asking it
            self._breakers = {access: Breaker(metrics.STORE_OPEN.labels(access=access).set) for access in ("read", "write")}
        self.first_write_wins = True
        """whether the store itself sees to it; until ``probe`` has tried, it is taken to"""

    @property
    def ours(self) -> bool:
        """Whether the place is this machine's, so that nobody else tidies it up."""
        return isinstance(self._store, (LocalStore, MemoryStore))

    async def probe(self) -> None:
        """Try what the service relies on, with an object that is taken away again: write, first write wins, read, delete.

        Some servers ignore the condition of a conditional put and some refuse it (rclone and Swift's S3, for two).  There, ``create``
        looks, writes and looks again; of two writers at the same moment the last one stays.
        """
        path = f"probe/{uuid.uuid4().hex}"
        try:
            await self._create(path, b"first")
            self.first_write_wins = not await self._create(path, b"second")
        except StoreTooSlow:
            raise
        except StoreUnavailable:  # refused, or nothing at all can be written: then this tells
            await self.write(path, b"first")
            self.first_write_wins = False
        if await self.read(path) not in (b"first", b"second"):
            raise StoreUnavailable("the store does not give back what was written a moment ago")
        await self.delete(path)
        if not self.first_write_wins:
            structlog.get_logger().warning(
                "the store has no conditional put",
                consequence="of two replicas that store the same id at the same moment the last one stays",
            )

    async def create(self, path: str, content: bytes) -> bool:
        """Write unless the path is taken; returns whether this call wrote it.  Never visible in part."""
        if self.first_write_wins:
            return await self._create(path, content)
        if await self.size(path) is not None:
            return False
        try:
            await self.write(path, content)
        except StoreUnavailable:
            # Swift confirms a write that another one overtook without an entity tag, which obstore takes for a failure
            if await self.size(path) is None:
                raise
        return await self.read(path) == content

    async def _create(self, path: str, content: bytes) -> bool:
        try:
            await self._call("create", obstore.put, self._store, path, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    async def write(self, path: str, content: bytes) -> None:
        """Write or overwrite.  Never visible in part."""
        await self._call("write", obstore.put, self._store, path, content)

    async def read(self, path: str) -> bytes | None:
        """The bytes, or None when there are none."""
        try:
            return await self._call("read", lambda: bytes(obstore.get(self._store, path).bytes()))
        except FileNotFoundError:
            return None

    async def size(self, path: str) -> int | None:
        """Length without reading, or None when there is nothing."""
        meta = await self._meta(path)
        return None if meta is None else int(meta["size"])

    async def age_s(self, path: str) -> float | None:
        """Seconds since it was written, by the store's clock and this machine's, or None when there is nothing."""
        meta = await self._meta(path)
        return None if meta is None else time.time() - meta["last_modified"].timestamp()

    async def _meta(self, path: str) -> ObjectMeta | None:
        try:
            return await self._call("size", obstore.head, self._store, path)
        except FileNotFoundError:
            return None

    async def delete(self, path: str) -> None:
        """Delete; nothing happens where there is nothing."""
        try:
            await self._call("delete", obstore.delete, self._store, path)
        except FileNotFoundError:
            pass

    async def tidy(self, prefix: str) -> None:
        """On a folder: take away those under a prefix in which nothing is any more, but for this minute's.  The store never does."""
        if isinstance(self._store, LocalStore) and self._store.prefix is not None:
            await asyncio.to_thread(_without_empty_folders, Path(self._store.prefix, prefix))

    async def list(self, prefix: str, in_time: bool = True) -> list[tuple[str, int]]:
        """Path and size of everything under a prefix, what was written longest ago first; ``in_time``: or StoreTooSlow."""

        def listed() -> list[tuple[str, int]]:
            found = [each for part in obstore.list(self._store, prefix=prefix) for each in part]
            return [(each["path"], int(each["size"])) for each in sorted(found, key=lambda each: each["last_modified"])]

        return await self._call("list", listed) if in_time else await self._answer(self._run(listed), None)

    async def _call(
        self, operation: Operation, call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        breaker = self._breakers.get(ACCESS[operation])
        guarded: AbstractContextManager[None] = nullcontext() if breaker is None else breaker.trying()
        try:
            with guarded, metrics.STORE_SECONDS.labels(op=operation).time():
                return await self._answer(self._run(lambda: call(*args, **kwargs)), self._timeout_s)
        except StoreUnavailable:
            metrics.STORE_ERRORS.labels(op=operation).inc()
            raise

    def _run(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _answer(self, running: asyncio.Future[Result], timeout_s: float | None) -> Result:
        try:
            return await asyncio.wait_for(running, timeout_s)
        except (FileNotFoundError, AlreadyExistsError):
            raise
        except TimeoutError as error:
            raise StoreTooSlow(f"the store did not answer within {timeout_s:g} s") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreUnavailable("the store refused this service's credentials") from error
        except (OSError, BaseError) as error:
            raise StoreUnavailable("the store failed") from error


def address_of(place: str) -> str:
    """A folder's path as a ``file://`` address, any address as it is; raises BadParameter for what looks like a mistyped one."""
    if "://" in place:
        return place
    if ":" in place.partition("/")[0]:
        raise BadParameter(f"{place} is no address, which has ://, such as s3://bucket; if it is a folder write ./{place}")
    return Path(place).absolute().as_uri()


def open_store(place: str, timeout_s: float = 10.0) -> Objects:
    """A folder (made if missing), by its path or as ``file:///folder``, ``memory:///`` or anything obstore reads.

    Raises BadParameter for an address that names no folder, StoreUnavailable for what cannot be opened.
    """
    url = address_of(place)
    scheme = url.partition("://")[0].lower()
    try:
        if scheme == "file":
            parts = urlsplit(url)
            if parts.query or parts.fragment:
                raise BadParameter(f"{url} has a ? or a #: in a folder's name write %3F or %23")
            if parts.netloc not in ("", "localhost"):
                raise BadParameter(f"{url} names a machine, '{parts.netloc}': a folder's address has three slashes, file:///folder")
            folder = Path(unquote(parts.path, errors="surrogateescape"))
            folder.mkdir(parents=True, exist_ok=True)
            return Objects(LocalStore(folder), timeout_s)
        if scheme == "memory":
            return Objects(MemoryStore(), timeout_s)
        return Objects(remote(url, timeout_s), timeout_s)
    except (OSError, ValueError, BaseError) as error:
        raise StoreUnavailable(f"the store {scheme}:// cannot be opened: {first_line(error)}") from error


def remote(url: str, timeout_s: float) -> ObjectStore:
    """An object store by its address, neither a folder nor memory.

    A request that hangs is cut in time for another try, and nothing is tried when nobody waits any more.  Raises what obstore raises.
    """
    part = timedelta(seconds=timeout_s / 2)
    # these options replace the environment's, so what an endpoint without TLS needs is said again
    plain = any(os.environ.get(name, "").lower().startswith(("http://", "true")) for name in PLAIN_HTTP)
    return from_url(
        url,
        client_options={"connect_timeout": part, "timeout": part, "allow_http": plain},
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=timeout_s),
            "backoff": {"init_backoff": timedelta(seconds=0.05), "max_backoff": timedelta(seconds=timeout_s / 4), "base": 2},
        },
    )


def _without_empty_folders(folder: Path) -> None:
    before = time.time() - YOUNG_S  # a younger one may be made for what is being written
    for here, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # there is something in it, or it is gone
            if Path(here).stat().st_mtime < before:
                Path(here).rmdir()
