"""What the routes work with, made once at start; and the small things several routes share."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn, TypeVar, cast
from urllib.parse import quote

from fastapi import Depends, Header, Request
from starlette.datastructures import UploadFile

from service.api.access import Access
from service.api.schemas import BlobInfo, Links, once_each
from service.api.variants import Variants
from service.batching.refusals import missed
from service.batching.shared import SharedRuns
from service.codec.container import Blob
from service.codec.methods import METHODS
from service.errors import BadParameter, Gone, NotFound
from service.pipeline import Compressed, Pipeline
from service.settings import Scope, Settings
from service.storage.blobs import BlobStore, Facts
from service.storage.keeping import add_tag, keep
from service.storage.leases import Leases
from service.storage.renders import RenderCache

DEADLINE_HEADER, DEADLINE_PATTERN = "SDC-Deadline-Ms", "^[1-9][0-9]{0,8}$"
TRAVEL_S = 0.03
"""taken off a caller's deadline for the way of the request in and of the reply out"""
AT_ONCE_BYTES = 1 << 18
"""so much is hashed in a fifth of a millisecond"""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Shown:
    """A rendered picture."""

    content: bytes
    seconds: dict[str, float]
    """by stage"""
    elsewhere: bool
    """made by another replica"""


@dataclass(frozen=True)
class Services:
    pipeline: Pipeline
    blobs: BlobStore
    cache: RenderCache
    leases: Leases
    settings: Settings
    variants: Variants
    access: Access
    compressions: SharedRuns[Compressed] = field(default_factory=SharedRuns)
    """by id"""
    renders: SharedRuns[Shown] = field(default_factory=SharedRuns)
    """by variant"""
    verifications: SharedRuns[None] = field(default_factory=SharedRuns)
    """of files made elsewhere, by id"""

    def info(self, blob_id: str, blob: Blob, size: int, facts: Facts) -> BlobInfo:
        """The JSON of a stored blob; ``facts`` are those of its sidecar."""
        render, stored, link = f"/render/{blob_id}", f"/blobs/{blob_id}", self.access.link
        return BlobInfo(
            id=blob_id,
            bytes=size,
            width=blob.width,
            height=blob.height,
            bpp=round(8 * size / (blob.width * blob.height), 4),
            method=METHODS[blob.method],
            model=self.pipeline.codec_of(blob).manifest.full_name,
            preview=facts.get("preview"),
            color=facts.get("color"),
            links=Links(render=link(render), png=link(f"{render}.png"), webp=link(f"{render}.webp"), blob=stored, info=f"{stored}/info"),
        )

    async def require(self, blob_id: str) -> Facts:
        """What is known beside a blob; raises NotFound or Gone unless it exists.  Reads no blob."""
        facts = await self.blobs.look(blob_id)
        return await self._missing(blob_id) if facts is None else facts

    async def read(self, blob_id: str) -> bytes:
        """The blob; raises NotFound or Gone."""
        content = await self.blobs.read(blob_id)
        return await self._missing(blob_id) if content is None else content

    async def size(self, blob_id: str) -> int:
        """The blob's length; raises NotFound or Gone."""
        length = await self.blobs.size(blob_id)
        return await self._missing(blob_id) if length is None else length

    async def store(self, blob_id: str, content: bytes, facts: Facts) -> tuple[bytes, bool]:
        """Store unless another was first; returns what is stored now, and whether this call stored it."""
        return await keep(self.blobs, blob_id, content, facts)

    async def tag(self, blob_id: str, tag: str | None) -> Facts:
        """Keep a caller's purge tag beside a stored blob; see ``add_tag``."""
        return await add_tag(self.blobs, blob_id, tag)

    async def _missing(self, blob_id: str) -> NoReturn:
        if await self.blobs.was_deleted(blob_id):
            raise Gone("this id was deleted; posting the photo again revives it")
        raise NotFound("there is no blob with this id")


# Dependencies are coroutines: FastAPI runs plain functions on a thread, a detour that costs more than what they do.


async def get_services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


InjectedServices = Annotated[Services, Depends(get_services)]


async def _once_each(request: Request) -> None:
    once_each([name for name, _ in request.query_params.multi_items()])


async def _deadline(
    services: InjectedServices,
    given: Annotated[
        str | None,
        Header(
            alias=DEADLINE_HEADER,
            description="Milliseconds from now in which the reply is of use; refused or given up where that cannot be met.",
            json_schema_extra={"pattern": DEADLINE_PATTERN},
        ),
    ] = None,
) -> float:
    """When the reply is of no more use, on the monotonic clock: what the caller says, at most what the service says."""
    allowed = services.settings.deadline_s
    if given is None:
        return time.monotonic() + allowed
    if not re.fullmatch(DEADLINE_PATTERN, given):
        raise BadParameter(f"{DEADLINE_HEADER} must be a whole number of milliseconds, of nine digits at most")
    return time.monotonic() + min(allowed, int(given) / 1000) - TRAVEL_S


Deadline = Annotated[float, Depends(_deadline)]


def needs(scope: Scope) -> Any:
    """A dependency: the request's key must have this scope, where any is asked for; before its body is read."""

    async def check(request: Request, services: InjectedServices) -> None:
        services.access.require(scope, request.headers.get("authorization"))

    return Depends(check)


def require_in_time(deadline: float) -> None:
    """Raise DeadlineMissed where the reply would come too late to be of use."""
    if time.monotonic() > deadline:
        raise missed("the deadline passed before the reply was ready")


STRICT = [Depends(_once_each)]
"""for every router with query parameters"""


async def off_loop_if_large(content: bytes, call: Callable[[], Result]) -> Result:
    """Run what takes time in proportion to ``content``: at once where that is shorter than the way to a thread and back."""
    return call() if len(content) < AT_ONCE_BYTES else await asyncio.to_thread(call)


async def read_body(request: Request) -> bytes:
    """The body: raw bytes, or the field ``file`` of a multipart form.  Raises BadParameter when there is nothing."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        try:
            async with request.form(max_files=2, max_fields=2) as form:
                upload = form.get("file")
                if not isinstance(upload, UploadFile) or len(form.multi_items()) != 1:
                    raise BadParameter(
                        "the form must have one field, a file named 'file': options go into the address, as in /compress?max_bytes=3000"
                    )
                content = await upload.read()
        except UnicodeError as error:  # of a charset that says of itself that it can nothing
            raise BadParameter("the form's charset does not fit the names in it: leave it out") from error
    else:
        content = await request.body()
    if not content:
        raise BadParameter("the body is empty: send the bytes of a picture, raw or as form field 'file'")
    return content


def server_timing(seconds: dict[str, float]) -> str:
    """Stages as a Server-Timing header."""
    return ", ".join(f"{stage};dur={value * 1000:.1f}" for stage, value in seconds.items())


def purge_tags(blob_id: str, tags: Iterable[str]) -> dict[str, str]:
    """By which a CDN can be told to forget all variants of a picture, or all that a caller tagged alike.

    Two spellings: Cloudflare's and Akamai's header, and Fastly's and Varnish's.
    """
    all_tags = [blob_id, *tags]
    return {"Cache-Tag": ",".join(all_tags), "Surrogate-Key": " ".join(all_tags)}


def disposition(name: str) -> str:
    return f'inline; filename="{quote(name)}"'


BODY_DOCUMENTATION = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary", "minLength": 1}},
                    "required": ["file"],
                    "additionalProperties": False,
                }
            },
        },
    }
}
