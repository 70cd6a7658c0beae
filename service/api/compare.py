"""POST /compare: a photo as an ``.sdc`` and as JPEG, WebP and AVIF of the same size, with figures; what the page at / shows.

It costs many times what a compression does, so it is bounded apart from the rest: in pixels, at once, and for each address.  It stores
nothing.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from ipaddress import IPv6Address, ip_address
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from service.api.access import Quota
from service.api.negotiation import BLOB_TYPE
from service.api.pictures import BAD_INPUT
from service.api.schemas import Problem, RateQuery
from service.api.services import (
    BODY_DOCUMENTATION,
    STRICT,
    Deadline,
    InjectedServices,
    Services,
    needs,
    read_body,
    require_in_time,
)
from service.codec.methods import METHODS
from service.comparison import contest
from service.errors import Overloaded
from service.imaging.opening import picture_size
from service.options import CompressOptions, RenderOptions
from service.pipeline import Compressed, Rendered
from service.settings import Settings

router = APIRouter(dependencies=STRICT)
Result = TypeVar("Result")
MOST_ADDRESSES = 4096
"""whose requests are counted; the longest unseen is forgotten first"""
RETRY_AFTER_S = 5
"""about what a comparison takes that is half done"""
PATIENCE_S = 2.0
"""so long anything else that needs the processor goes before a step of a comparison"""
MEDIA_TYPES = {"JPEG": "image/jpeg", "WebP": "image/webp", "AVIF": "image/avif"}


class Comparisons:
    """Who may compare, and how many at once.

    Args:
        at_once: comparisons at work.
        per_minute: for each address; an IPv6 network of 64 bits is one.
        clock: monotonic seconds.
    """

    def __init__(self, at_once: int, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once, self._per_minute, self._clock = at_once, per_minute, clock
        self._working = 0
        self._quotas: OrderedDict[str, Quota] = OrderedDict()

    def count(self, address: str) -> None:
        """Count a request; raises QuotaExceeded."""
        name = _network(address)
        quota = self._quotas.pop(name, None) or Quota(self._per_minute, self._clock)
        self._quotas[name] = quota
        if len(self._quotas) > MOST_ADDRESSES:
            self._quotas.popitem(last=False)
        quota.take()

    def require_room(self) -> None:
        """Raises Overloaded."""
        if self._working >= self._at_once:
            raise Overloaded("as many comparisons as may be are at work", retry_after_s=RETRY_AFTER_S)

    @contextmanager
    def one(self) -> Iterator[None]:
        """The block is one comparison; raises Overloaded where there is no room."""
        self.require_room()
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1


def _network(address: str) -> str:
    """Whoever has one IPv6 address has 2**64 of them."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return parsed.exploded[:19]
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def install(settings: Settings) -> Comparisons:
    """What the route works with, beside ``Services``."""
    return Comparisons(settings.compare_at_once, settings.compare_per_minute)


async def _comparisons(request: Request, services: InjectedServices) -> Comparisons:
    """Counted and refused before the body is read."""
    comparisons: Comparisons = request.app.state.comparisons
    comparisons.count(request.client.host if request.client else "")
    comparisons.require_room()
    return comparisons


class Figures(BaseModel):
    """How near to the original; null where it was not measured, and `notes` say why."""

    psnr: float = Field(description="dB; higher is better.")
    ms_ssim: float | None = Field(description="0 to 1; higher is better.")
    ssimulacra2: float | None = Field(description="100 is perfect; higher is better.")
    feature: float | None = Field(description="Deep-feature distance (LPIPS form on EfficientNet-lite2); lower is better.")


class Entry(BaseModel):
    """One codec's file, and what it shows."""

    bytes: int
    quality: int | None = Field(description="The rival's own, 0 to 100; null for `.sdc`.")
    smallest: bool = Field(description="Whether the file is larger than the `.sdc` because this codec cannot make it smaller.")
    file: str = Field(description="Data URI of the file.")
    picture: str | None = Field(description="Data URI of what it shows, as PNG; null where the file itself can be shown.")
    figures: Figures
    encode_ms: float = Field(description="To make the file; of a rival without the search for its quality.")
    decode_ms: float = Field(description="To make a picture of it again; of `.sdc` with writing the PNG.")


class Comparison(BaseModel):
    width: int
    height: int
    method: str
    model: str
    preview: str = Field(description="Data URI of a few pixels, under 600 characters.")
    color: str = Field(description="Dominant colour, `#rrggbb`.")
    stages: dict[str, dict[str, float]] = Field(description="Milliseconds of each stage of `compress` and of `render`.")
    codecs: dict[str, Entry] = Field(description="By name: sdc, JPEG, WebP, AVIF.")
    notes: list[str] = Field(description="What is missing here, and why, for people.")


@router.post(
    "/compare",
    dependencies=[needs("compress")],
    response_model=Comparison,
    responses={**BAD_INPUT, 429: {"model": Problem}},
    openapi_extra=BODY_DOCUMENTATION,
)
async def compare(
    request: Request,
    query: Annotated[RateQuery, Query()],
    services: InjectedServices,
    comparisons: Annotated[Comparisons, Depends(_comparisons)],
    deadline: Deadline,
) -> Response:
    """A photo beside what JPEG, WebP and AVIF make of it in at least as many bytes; nothing is stored."""
    options = CompressOptions("latent", query.max_bytes, query.quality)
    services.pipeline.refuse_hopeless("compress", deadline)
    source = await read_body(request)
    await asyncio.to_thread(picture_size, source, services.settings.compare_max_pixels)
    with comparisons.one():
        comparison = await _compared(source, options, services, deadline)
    require_in_time(deadline)
    return Response(comparison.model_dump_json(), 200, {"Cache-Control": "no-store"}, "application/json")


async def _compared(source: bytes, options: CompressOptions, services: Services, deadline: float) -> Comparison:
    """All of it: the device's part by the queue, the rest step by step on the processor's threads."""

    async def run(call: Callable[[], Result]) -> Result:
        result, _ = await services.pipeline.batcher.processor.run(call, PATIENCE_S, deadline)
        return result

    pipeline, manifest = services.pipeline, services.pipeline.engine.manifest
    compressed = await pipeline.compress(source, options, deadline=deadline)
    rendered = await pipeline.render(compressed.content, RenderOptions("png"), deadline)
    original = await run(lambda: contest.look(source))
    shown = await run(lambda: contest.look(rendered.content))
    codecs = {"sdc": _ours(compressed, rendered, await contest.judge(original, shown, run))}
    for name in contest.CONTENDERS:
        entry = await contest.enter(name, original, len(compressed.content), run)
        codecs[name] = _theirs(name, entry, await contest.judge(original, entry.shown, run))
    return Comparison(
        width=compressed.blob.width,
        height=compressed.blob.height,
        method=METHODS[compressed.blob.method],
        model=manifest.full_name,
        preview=compressed.glance.preview,
        color=compressed.glance.color,
        stages={"compress": _milliseconds(compressed.seconds), "render": _milliseconds(rendered.seconds)},
        codecs=codecs,
        notes=contest.notes(original),
    )


def _ours(compressed: Compressed, rendered: Rendered, figures: contest.Figures) -> Entry:
    return Entry(
        bytes=len(compressed.content),
        quality=None,
        smallest=False,
        file=_data_uri(BLOB_TYPE, compressed.content),
        picture=_data_uri("image/png", rendered.content),
        figures=Figures(**asdict(figures)),
        encode_ms=round(1000 * sum(compressed.seconds.values()), 1),
        decode_ms=round(1000 * sum(rendered.seconds.values()), 1),
    )


def _theirs(name: str, entry: contest.Entry, figures: contest.Figures) -> Entry:
    return Entry(
        bytes=len(entry.content),
        quality=entry.quality,
        smallest=entry.smallest,
        file=_data_uri(MEDIA_TYPES[name], entry.content),
        picture=None,
        figures=Figures(**asdict(figures)),
        encode_ms=round(1000 * entry.encode_s, 1),
        decode_ms=round(1000 * entry.decode_s, 1),
    )


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(1000 * value, 1) for stage, value in seconds.items()}


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
