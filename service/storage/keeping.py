"""What is put beside a blob, and how the first write wins: one way for whoever makes blobs, over HTTP or in bulk.

Knows nothing of HTTP or of how blobs are made.
"""

from __future__ import annotations

import hashlib
import re

from service.errors import BadParameter
from service.storage.blobs import BlobStore, Facts

MOST_TAGS = 8
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"


async def keep(blobs: BlobStore, blob_id: str, content: bytes, facts: Facts) -> tuple[bytes, bool]:
    """Store unless another was first; returns what is stored now, and whether this call stored it."""
    facts = {**facts, "digest": digest_of(content)}
    if await blobs.create(blob_id, content, facts):
        return content, True
    stored = await blobs.read(blob_id)
    # None: deleted between the two calls, so the place is free again
    return (content, await blobs.create(blob_id, content, facts)) if stored is None else (stored, False)


async def add_tag(blobs: BlobStore, blob_id: str, tag: str | None) -> Facts:
    """Keep a caller's purge tag beside a stored blob; returns the facts.  Raises BadParameter where it has as many as it may.

    Of two at the same moment the last one stays.
    """
    facts = await blobs.facts(blob_id)
    tags = facts.get("tags", [])
    if tag is None or tag in tags:
        return facts
    if len(tags) >= MOST_TAGS:
        raise BadParameter(f"this picture has {MOST_TAGS} tags, and no picture has more")
    facts = facts | tagged(*tags, tag)
    await blobs.note(blob_id, facts)
    return facts


def tagged(*tags: str | None) -> Facts:
    """The fact that callers gave these tags."""
    given = [tag for tag in tags if tag is not None]
    return {"tags": given} if given else {}


def digest_of(blob: bytes) -> str:
    """What a blob's entity tag is made of: 32 hexadecimal characters of its SHA-256."""
    return hashlib.sha256(blob).hexdigest()[:32]


def check_tag(tag: str) -> str:
    """The tag itself; raises BadParameter for what cannot be one."""
    if not re.fullmatch(TAG_PATTERN, tag) or tag.endswith("\n"):
        raise BadParameter("a tag is 1 to 64 of A-Z, a-z, 0-9 and ._:-, and begins with a letter or digit")
    return tag
