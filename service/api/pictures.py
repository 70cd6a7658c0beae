"""POST /compress, POST /decompress, GET|HEAD /render/<id>."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from service.api.negotiation import BLOB_TYPE, matches, pick_extension, wants_blob
from service.api.schemas import BlobInfo, CompressQuery, DecompressQuery, Problem, RenderQuery
from service.api.services import (
    BODY_DOCUMENTATION,
    STRICT,
    Deadline,
    InjectedServices,
    Services,
    disposition,
    needs,
    off_loop_if_large,
    purge_tags,
    read_body,
    require_in_time,
    server_timing,
)
from service.api.variants import Variant
from service.errors import NotFound
from service.imaging.writing import FORMATS
from service.pipeline import CompressOptions, Rendered, RenderOptions
from service.storage.blobs import check_id

router = APIRouter(dependencies=STRICT)

REDIRECT_S, YEAR_S = 86400, 31536000
IMMUTABLE = f"public, max-age={YEAR_S}, immutable"
EMBEDDABLE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Timing-Allow-Origin": "*",
    "Accept-Ranges": "none",
}
BAD_INPUT: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 413, 415, 422, 503)}
HIT, MISS = "sdc; hit", "sdc; fwd=uri-miss"
"""RFC 9211"""
PICTURE: dict[str, Any] = {"content": {each.content_type: {"schema": {"type": "string", "format": "binary"}} for each in FORMATS.values()}}
PICTURE_REPLIES: dict[int | str, dict[str, Any]] = {200: PICTURE, 308: {"description": "To the one spelling of this address."}}
NO_ID: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 404, 410, 503)}
BlobId = Annotated[str, Path(description="26 characters of a-z and 2-7.")]


@router.post(
    "/compress",
    dependencies=[needs("compress")],
    status_code=201,
    response_model=BlobInfo,
    responses={200: {"model": BlobInfo, "description": "Known already: no device work."}, **BAD_INPUT},
    openapi_extra=BODY_DOCUMENTATION,
)
async def compress(request: Request, query: Annotated[CompressQuery, Query()], services: InjectedServices, deadline: Deadline) -> Response:
    """A photo (JPEG, PNG, WebP, AVIF, TIFF, GIF or BMP) to a blob of a few kilobytes, stored under an id that names its content."""
    options = CompressOptions(query.method, query.max_bytes, query.quality)
    services.pipeline.refuse_hopeless("compress", deadline, query.lane)
    source = await read_body(request)
    blob_id = await off_loop_if_large(source, lambda: services.pipeline.id_of(source, options))
    content = await services.blobs.read(blob_id)
    created, timing, facts = False, {}, None
    if content is None:
        compressed = await services.compressions.run(blob_id, lambda: services.pipeline.compress(source, options, query.lane, deadline))
        known = {"source_bytes": len(source), "preview": compressed.glance.preview, "color": compressed.glance.color}
        content, created = await services.store(blob_id, compressed.content, known)
        facts = known if created else None
        timing = {"Server-Timing": server_timing(compressed.seconds)}
        require_in_time(deadline)  # it is stored: asking again is quick
    blob = services.pipeline.parse(content)
    status = 201 if created else 200
    headers = {"Location": services.access.link(f"/render/{blob_id}"), "SDC-Id": blob_id, "Cache-Control": "no-store", **timing}
    if wants_blob(request.headers.get("accept")):
        headers["Content-Disposition"] = disposition(f"{blob_id}.sdc")
        return Response(content, status, headers, BLOB_TYPE)
    body = services.info(blob_id, blob, len(content), await services.facts(blob_id) if facts is None else facts).model_dump_json()
    return Response(body, status, headers, "application/json")


@router.post(
    "/decompress",
    dependencies=[needs("compress")],
    response_class=Response,
    responses={200: PICTURE, **BAD_INPUT},
    openapi_extra=BODY_DOCUMENTATION,
)
async def decompress(
    request: Request, query: Annotated[DecompressQuery, Query()], services: InjectedServices, deadline: Deadline
) -> Response:
    """An ``.sdc`` body back to a picture; nothing is stored."""
    extension = query.format or pick_extension(request.headers.get("accept"))
    services.pipeline.refuse_hopeless("render", deadline)
    rendered = await services.pipeline.render(await read_body(request), RenderOptions(extension, query.steps, query.q, query.box), deadline)
    require_in_time(deadline)
    headers = {
        **EMBEDDABLE,
        "Cache-Control": "no-store",
        "Server-Timing": server_timing(rendered.seconds),
        "Content-Disposition": disposition(f"picture.{extension}"),
    }
    return Response(rendered.content, 200, headers, FORMATS[extension].content_type)


@router.get("/render/{blob_id}.{extension}", response_class=Response, responses={**PICTURE_REPLIES, **NO_ID})
@router.head("/render/{blob_id}.{extension}", include_in_schema=False)
async def render_as(
    request: Request,
    blob_id: BlobId,
    extension: str,
    query: Annotated[RenderQuery, Query()],
    services: InjectedServices,
    deadline: Deadline,
) -> Response:
    """The picture in the format its extension names: png, webp, jpg or avif.  Another spelling of an address is redirected to the one."""
    if extension not in FORMATS:
        raise NotFound(f"no format '{extension[:20]}': use {', '.join(FORMATS)}")
    return await _render(request, services, blob_id, query, services.variants.variant(query, extension), deadline)


@router.get("/render/{blob_id}", response_class=Response, responses={**PICTURE_REPLIES, **NO_ID})
@router.head("/render/{blob_id}", include_in_schema=False)
async def render(
    request: Request, blob_id: BlobId, query: Annotated[RenderQuery, Query()], services: InjectedServices, deadline: Deadline
) -> Response:
    """The picture in the format that the Accept header likes best; PNG for clients that name none."""
    return await _render(request, services, blob_id, query, services.variants.variant(query, None), deadline)


async def _render(request: Request, services: Services, blob_id: str, query: RenderQuery, variant: Variant, deadline: float) -> Response:
    """In this order: permission, spelling, existence, validators, work.

    A deleted id is 410 and never 304; neither 304 nor HEAD touches the device.
    """
    check_id(blob_id)  # it goes into headers
    default_steps = services.pipeline.engine.manifest.default_steps
    canonical = variant.path(blob_id, variant.extension, default_steps)
    canonical, kept_for = _permitted(request, services, canonical, query)
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if asked != canonical:
        return Response(None, 308, {"Location": canonical, "Cache-Control": kept_for(REDIRECT_S)})
    extension = variant.extension or pick_extension(request.headers.get("accept"))
    options = variant.options(extension)
    name = services.pipeline.variant(blob_id, options)
    entity_tag = f'W/"{name}"'
    headers = {"ETag": entity_tag, "Cache-Control": f"{kept_for(YEAR_S)}, immutable"}
    headers |= purge_tags(blob_id)
    if variant.extension is None:
        headers["Content-Location"] = variant.path(blob_id, extension, default_steps)
    await services.require(blob_id)
    if matches(request.headers.get("if-none-match"), entity_tag):
        return Response(None, 304, headers)
    headers |= {**EMBEDDABLE, "Content-Disposition": disposition(f"{blob_id}.{extension}")}
    content_type = FORMATS[extension].content_type
    if request.method == "HEAD":
        reply = Response(None, 200, headers, content_type)
        length = services.cache.size(blob_id, name)
        if length is None:
            del reply.headers["Content-Length"]  # unknown without rendering
        else:
            reply.headers.update({"Content-Length": str(length), "Cache-Status": HIT})
        return reply
    kept = await services.cache.read(blob_id, name)
    if kept is not None:
        return Response(kept, 200, {**headers, "Cache-Status": HIT}, content_type)
    joined = name in services.renders
    if not joined:
        services.pipeline.refuse_hopeless("render", deadline)

    async def make() -> Rendered:
        rendered = await services.pipeline.render(await services.read(blob_id), options, deadline)
        if await services.blobs.exists(blob_id):  # not deleted meanwhile
            services.cache.keep(blob_id, name, rendered.content)
        return rendered

    rendered = await services.renders.run(name, make)
    require_in_time(deadline)
    headers["Cache-Status"] = f"{MISS}; collapsed" if joined else MISS
    headers["Server-Timing"] = server_timing(rendered.seconds)
    return Response(rendered.content, 200, headers, content_type)


def _permitted(request: Request, services: Services, canonical: str, query: RenderQuery) -> tuple[str, Callable[[int], str]]:
    """The one spelling of the address, signature included, and who may keep the reply for how long.

    What a signature opened is not kept longer than it lasts; what a key opened is for whoever has it.
    Raises Unauthorized, Forbidden or QuotaExceeded.
    """
    signer = services.access.signer
    if signer.on and query.sig is not None:
        canonical, left = signer.check(canonical, query.expires, query.key, query.sig)
        return canonical, lambda seconds: f"public, max-age={min(seconds, left)}"
    services.access.require("render", request.headers.get("authorization"))
    who = "private" if signer.on else "public"
    return canonical, lambda seconds: f"{who}, max-age={seconds}"
