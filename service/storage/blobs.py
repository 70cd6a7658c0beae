"""Blobs, their sidecars and the marks of deleted ones: written once.

blobs/<id>.sdc     the blob
blobs/<id>.json    what is known beside it
deleted/<id>       the id was deleted; a new write takes the mark away
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from service.errors import NotFound, StoreUnavailable
from service.storage.objects import Objects

ID_PATTERN = re.compile(r"[a-z2-7]{26}")
SEEN_S, SEEN_COUNT = 30.0, 65536
"""how long, and of how many, a blob once seen is taken to be there"""


class BlobStore:
    """Write-once storage of blobs by id.

    Every method raises StoreUnavailable when the store fails, and NotFound for an id that cannot be one.
    """

    def __init__(self, objects: Objects, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects, self._clock = objects, clock
        self._seen: OrderedDict[str, float] = OrderedDict()
        """until when an id is taken to exist without asking"""

    async def create(self, blob_id: str, blob: bytes, sidecar: bytes) -> bool:
        """Store a blob unless the id is taken; returns whether this call stored it.  Never visible in part.

        The sidecar goes first, so that a blob which can be seen has one, but for a store that failed in between: readers must do
        without.  Whoever loses a race re-reads what was stored.
        """
        check_id(blob_id)
        first = await self._objects.create(f"blobs/{blob_id}.json", sidecar)
        try:
            created = await self._objects.create(f"blobs/{blob_id}.sdc", blob)
        except StoreUnavailable:
            if first:  # a full disk takes the small file and not the large one: leave neither
                await self._objects.delete(f"blobs/{blob_id}.json")
            raise
        if created:
            await self._objects.delete(f"deleted/{blob_id}")
        return created

    async def read(self, blob_id: str) -> bytes | None:
        """The blob, or None when there is none."""
        return await self._objects.read(f"blobs/{check_id(blob_id)}.sdc")

    async def read_sidecar(self, blob_id: str) -> bytes | None:
        return await self._objects.read(f"blobs/{check_id(blob_id)}.json")

    async def size(self, blob_id: str) -> int | None:
        """Length of the blob without reading it, or None when there is none."""
        return await self._objects.size(f"blobs/{check_id(blob_id)}.sdc")

    def seen(self, blob_id: str) -> bool:
        """Whether there was a blob within the last ``SEEN_S`` seconds: another replica's DELETE is noticed that late."""
        return self._seen.get(blob_id, -math.inf) > self._clock()

    async def exists(self, blob_id: str) -> bool:
        """Whether there is a blob, as far as it was not seen lately."""
        if self.seen(blob_id):
            return True
        found = await self.size(blob_id) is not None
        if found:
            self._seen[blob_id] = self._clock() + SEEN_S
            self._seen.move_to_end(blob_id)
            if len(self._seen) > SEEN_COUNT:
                self._seen.popitem(last=False)
        else:
            self._seen.pop(blob_id, None)
        return found

    async def was_deleted(self, blob_id: str) -> bool:
        return await self._objects.read(f"deleted/{check_id(blob_id)}") is not None

    async def delete(self, blob_id: str) -> bool:
        """Delete blob and sidecar and remember that they were; False when there was nothing."""
        self._seen.pop(blob_id, None)
        if await self.size(blob_id) is None:
            return False
        await self._objects.write(f"deleted/{blob_id}", b"")
        await self._objects.delete(f"blobs/{blob_id}.sdc")
        await self._objects.delete(f"blobs/{blob_id}.json")
        self._seen.pop(blob_id, None)  # seen by somebody in between
        return True

    async def check(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        await self._objects.read("deleted/probe")


def check_id(blob_id: str) -> str:
    """The id itself; raises NotFound for what cannot be one."""
    if not ID_PATTERN.fullmatch(blob_id):
        raise NotFound("an id is 26 characters of a-z and 2-7")
    return blob_id
