"""Blobs, their sidecars and the marks of deleted ones: written once.

blobs/<id>.sdc     the blob
blobs/<id>.json    what is known beside it: facts, a JSON object
deleted/<id>       the id was deleted; a new write takes the mark away
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from service.errors import NotFound, StoreUnavailable
from service.storage.objects import Objects

ID_PATTERN = re.compile(r"[a-z2-7]{26}")
SEEN_S, SEEN_COUNT = 30.0, 65536
"""how long, and of how many, a blob once seen is taken to be there"""

Facts = dict[str, Any]


class BlobStore:
    """Write-once storage of blobs by id.

    Every method raises StoreUnavailable when the store fails, and NotFound for an id that cannot be one.
    """

    def __init__(self, objects: Objects, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects, self._clock = objects, clock
        self._seen: OrderedDict[str, tuple[float, Facts]] = OrderedDict()
        """until when an id is taken to exist without asking, and with what facts"""
        self._changes = 0
        """of what was seen: an answer on its way meanwhile may be out of date"""

    @property
    def first_write_wins(self) -> bool:
        """Whether the store itself sees to it that of two writers one is told that it was too late."""
        return self._objects.first_write_wins

    async def create(self, blob_id: str, blob: bytes, facts: Facts) -> bool:
        """Store a blob unless the id is taken; returns whether this call stored it.  Never visible in part.

        The sidecar goes first, so that a blob which can be seen has one, but for a store that failed in between: readers must do
        without.  Whoever loses a race re-reads what was stored.
        """
        check_id(blob_id)
        sidecar = json.dumps(facts).encode()
        first = await self._objects.create(f"blobs/{blob_id}.json", sidecar)
        try:
            created = await self._objects.create(f"blobs/{blob_id}.sdc", blob)
        except StoreUnavailable:
            if first:  # a full disk takes the small file and not the large one: leave neither
                await self._objects.delete(f"blobs/{blob_id}.json")
            raise
        if created:
            if not first:  # of another writer, who lost, or of a write that was cut off
                await self._objects.write(f"blobs/{blob_id}.json", sidecar)
            await self._objects.delete(f"deleted/{blob_id}")
        return created

    async def read(self, blob_id: str) -> bytes | None:
        """The blob, or None when there is none."""
        return await self._objects.read(f"blobs/{check_id(blob_id)}.sdc")

    async def facts(self, blob_id: str) -> Facts:
        """What is known beside the blob; nothing where there is no sidecar, or none that can be read."""
        try:
            found = json.loads(await self._objects.read(f"blobs/{check_id(blob_id)}.json") or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    async def note(self, blob_id: str, facts: Facts) -> None:
        """Put other facts beside a blob; other replicas notice within ``SEEN_S``."""
        await self._objects.write(f"blobs/{check_id(blob_id)}.json", json.dumps(facts).encode())
        self._overlook(blob_id)

    async def size(self, blob_id: str) -> int | None:
        """Length of the blob without reading it, or None when there is none."""
        return await self._objects.size(f"blobs/{check_id(blob_id)}.sdc")

    def seen(self, blob_id: str) -> Facts | None:
        """The facts of a blob that was there within the last ``SEEN_S`` seconds: another replica's DELETE is noticed that late."""
        until, facts = self._seen.get(blob_id, (-math.inf, None))
        return facts if until > self._clock() else None

    async def look(self, blob_id: str) -> Facts | None:
        """The facts of a blob, asked for where it was not seen lately; None when there is no blob.

        While the store fails, a blob that was ever seen is taken to be there still.
        """
        seen = self.seen(blob_id)
        if seen is not None:
            return seen
        changes = self._changes
        try:
            size, facts = await asyncio.gather(self.size(blob_id), self.facts(blob_id))
        except StoreUnavailable:
            if blob_id not in self._seen:
                raise
            return self._seen[blob_id][1]
        found = facts if size is not None else None
        if found is not None and changes == self._changes:
            self._seen[blob_id] = self._clock() + SEEN_S, found
            self._seen.move_to_end(blob_id)
            if len(self._seen) > SEEN_COUNT:
                self._seen.popitem(last=False)
        return found

    async def was_deleted(self, blob_id: str) -> bool:
        return await self._objects.read(f"deleted/{check_id(blob_id)}") is not None

    async def delete(self, blob_id: str) -> bool:
        """Delete blob and sidecar and remember that they were; False when there was nothing.

        The sidecar goes first: once the blob is gone, the next one there may be of a write that revives the id.
        """
        self._overlook(blob_id)
        if await self.size(blob_id) is None:
            return False
        await self._objects.write(f"deleted/{blob_id}", b"")
        await self._objects.delete(f"blobs/{blob_id}.json")
        await self._objects.delete(f"blobs/{blob_id}.sdc")
        self._overlook(blob_id)  # seen by somebody in between
        return True

    def _overlook(self, blob_id: str) -> None:
        self._changes += 1
        self._seen.pop(blob_id, None)

    async def check(self) -> None:
        """Raise StoreUnavailable unless the store takes, keeps and gives; learns whether it has conditional puts."""
        await self._objects.probe()


def check_id(blob_id: str) -> str:
    """The id itself; raises NotFound for what cannot be one."""
    if not ID_PATTERN.fullmatch(blob_id):
        raise NotFound("an id is 26 characters of a-z and 2-7")
    return blob_id
