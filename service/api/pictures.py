"""POST /compress, POST /decompress, GET|HEAD /render/<id>."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from service.api.delivery import EMBEDDABLE, HIT, Grant, Wanted, without_work
from service.api.middleware import header_of
from service.api.negotiation import BLOB_TYPE, pick_extension, wants_blob
from service.api.schemas import BlobInfo, CompressQuery, DecompressQuery, Problem, RenderQuery
from service.api.services import (
    BODY_DOCUMENTATION,
    STRICT,
    Deadline,
    InjectedServices,
    Services,
    Shown,
    disposition,
    needs,
    off_loop_if_large,
    read_body,
    require_in_time,
    server_timing,
)
from service.batching.refusals import missed
from service.imaging.writing import FORMATS
from service.options import CompressOptions, RenderOptions
from service.storage.blobs import ID_PATTERN
from service.storage.keeping import tagged
from service.storage.leases import Lease

router = APIRouter(dependencies=STRICT)

BAD_INPUT: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 413, 415, 422, 503)}
MISS = "sdc; fwd=uri-miss"
"""RFC 9211"""
PICTURE: dict[str, Any] = {"content": {each.content_type: {"schema": {"type": "string", "format": "binary"}} for each in FORMATS.values()}}
UNCHANGED: dict[str, Any] = {"description": "What the client has is what there is (If-None-Match)."}
PICTURE_REPLIES: dict[int | str, dict[str, Any]] = {
    200: PICTURE,
    304: UNCHANGED,
    308: {"description": "To the one spelling of this address."},
}
BLOB_CONTENT: dict[str, Any] = {"content": {BLOB_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
"""of a reply that is, or can be asked to be, the file itself"""
NO_ID: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 404, 410, 503)}
ID_SCHEMA: dict[str, Any] = {"pattern": f"^{ID_PATTERN.pattern}$"}
BlobId = Annotated[str, Path(description="26 characters of a-z and 2-7.", json_schema_extra=ID_SCHEMA)]
Extension = Annotated[str, Path(json_schema_extra={"enum": list(FORMATS)})]


@router.post(
    "/compress",
    dependencies=[needs("compress")],
    status_code=201,
    response_model=BlobInfo,
    responses={
        200: {"model": BlobInfo, "description": "Known already: no device work.", **BLOB_CONTENT},
        201: BLOB_CONTENT,
        **BAD_INPUT,
    },
    openapi_extra=BODY_DOCUMENTATION,
)
async def compress(request: Request, query: Annotated[CompressQuery, Query()], services: InjectedServices, deadline: Deadline) -> Response:
    """A photo (JPEG, PNG, WebP, AVIF, TIFF, GIF or BMP) to a blob of a few kilobytes, stored under an id that names its content."""
    options = CompressOptions(query.method, query.max_bytes, query.quality, query.dither == "1")
    services.pipeline.refuse_hopeless("compress", deadline, query.lane)
    source = await read_body(request)
    blob_id = await off_loop_if_large(source, lambda: services.pipeline.id_of(source, options))
    content = await services.blobs.read(blob_id)
    created, timing, facts = False, {}, {}
    if content is None:
        compressed = await services.compressions.run(
            blob_id, lambda: services.pipeline.compress(source, options, query.lane, deadline), deadline
        )
        glance = compressed.glance
        facts = {"source_bytes": len(source), "preview": glance.preview, "color": glance.color, **tagged(query.tag)}
        content, created = await services.store(blob_id, compressed.content, facts)
        timing = {"Server-Timing": server_timing(compressed.seconds)}
        require_in_time(deadline)  # it is stored: asking again is quick
    if not created:
        facts = await services.tag(blob_id, query.tag)
    blob = services.pipeline.parse(content)
    status = 201 if created else 200
    headers = {"Location": services.access.link(f"/render/{blob_id}"), "SDC-Id": blob_id, "Cache-Control": "no-store", **timing}
    if wants_blob(header_of(request, "accept")):
        headers["Content-Disposition"] = disposition(f"{blob_id}.sdc")
        return Response(content, status, headers, BLOB_TYPE)
    body = services.info(blob_id, blob, len(content), facts).model_dump_json()
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
    extension = query.format or pick_extension(header_of(request, "accept"))
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
    extension: Extension,
    query: Annotated[RenderQuery, Query()],
    services: InjectedServices,
    deadline: Deadline,
) -> Response:
    """The picture in the format its extension names: png, webp, jpg or avif.  Another spelling of an address is redirected to the one."""
    return await _fetched_or_made(request, services, deadline)


@router.get("/render/{blob_id}", response_class=Response, responses={**PICTURE_REPLIES, **NO_ID})
@router.head("/render/{blob_id}", include_in_schema=False)
async def render(
    request: Request, blob_id: BlobId, query: Annotated[RenderQuery, Query()], services: InjectedServices, deadline: Deadline
) -> Response:
    """The picture in the format that the Accept header likes best; PNG for clients that name none."""
    return await _fetched_or_made(request, services, deadline)


async def _fetched_or_made(request: Request, services: Services, deadline: float) -> Response:
    """What ``service.api.delivery`` granted and could not answer from memory."""
    grant: Grant = request.state.grant
    wanted, blob_id = grant.wanted, grant.wanted.address.blob_id
    facts = await services.require(blob_id)
    known = without_work(grant, facts, services, request.method, header_of(request, "if-none-match"))
    if known is not None:
        return known
    kept = await services.cache.read(blob_id, wanted.name)
    if kept is not None:
        return grant.reply(kept, facts, **{"Cache-Status": HIT})
    joined = wanted.name in services.renders
    if not joined:
        services.pipeline.refuse_hopeless("render", deadline)

    shown = await services.renders.run(wanted.name, lambda: _made_once(services, wanted, deadline), deadline)
    require_in_time(deadline)
    collapsed = joined or shown.elsewhere
    headers = {"Cache-Status": f"{MISS}; collapsed" if collapsed else MISS, "Server-Timing": server_timing(shown.seconds)}
    return grant.reply(shown.content, facts, **headers)


async def _made_once(services: Services, wanted: Wanted, deadline: float) -> Shown:
    """A picture, by this replica or, where another is at it already, by that one."""
    blob_id, started = wanted.address.blob_id, time.perf_counter()
    while True:
        try:
            lease = await services.leases.take(wanted.name, deadline)
        except TimeoutError:
            raise missed("another replica was making this picture and the deadline passed") from None
        if lease is not None:
            return await _made_here(services, wanted, lease, deadline)
        kept = await services.cache.read(blob_id, wanted.name)
        if kept is not None:
            return Shown(kept, {"lease": time.perf_counter() - started}, elsewhere=True)


async def _made_here(services: Services, wanted: Wanted, lease: Lease, deadline: float) -> Shown:
    blob_id, written = wanted.address.blob_id, None
    try:
        rendered = await services.pipeline.render(await services.read(blob_id), wanted.options, deadline)
        if await services.blobs.look(blob_id) is not None:  # not deleted meanwhile
            written = services.cache.keep(blob_id, wanted.name, rendered.content)
    finally:
        services.leases.release_after(lease, written)
    return Shown(rendered.content, rendered.seconds, elsewhere=False)
