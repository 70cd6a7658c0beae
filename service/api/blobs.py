"""POST /blobs, GET|HEAD|DELETE /blobs/<id>, GET /blobs/<id>/info."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.delivery import YEAR_S
from service.api.middleware import header_of
from service.api.negotiation import BLOB_TYPE, matches, misses
from service.api.pictures import BAD_INPUT, BLOB_CONTENT, NO_ID, UNCHANGED, BlobId
from service.api.ranges import asked_range
from service.api.schemas import BlobDetails, BlobInfo, NoQuery, Problem, UploadQuery
from service.api.services import (
    BODY_DOCUMENTATION,
    STRICT,
    Deadline,
    InjectedServices,
    disposition,
    needs,
    off_loop_if_large,
    purge_tags,
    read_body,
)
from service.codec import container
from service.codec.steps import step_size
from service.errors import NotFound, PreconditionFailed
from service.storage.keeping import digest_of, tagged

router = APIRouter(prefix="/blobs", dependencies=STRICT)
NoParameters = Annotated[NoQuery, Query()]
BLOB_REPLIES: dict[int | str, dict[str, Any]] = {
    200: BLOB_CONTENT,
    206: BLOB_CONTENT,
    304: UNCHANGED,
    412: {"model": Problem},
    416: {"model": Problem},
    **NO_ID,
}


@router.post(
    "",
    dependencies=[needs("compress")],
    status_code=201,
    response_model=BlobInfo,
    responses={200: {"model": BlobInfo, "description": "Stored already."}, **BAD_INPUT},
    openapi_extra=BODY_DOCUMENTATION,
)
async def upload(request: Request, query: Annotated[UploadQuery, Query()], services: InjectedServices, deadline: Deadline) -> Response:
    """Store an ``.sdc`` made elsewhere, under its own digest.  It is decoded once, so that only what can be rendered is stored."""
    content = await read_body(request)
    blob = services.pipeline.parse(content)
    blob_id = await off_loop_if_large(content, lambda: services.pipeline.id_of_blob(content))
    created, facts = False, tagged(query.tag)
    if await services.blobs.size(blob_id) is None:
        await services.verifications.run(blob_id, lambda: services.pipeline.verify(blob, deadline), deadline)
        created = (await services.store(blob_id, content, facts))[1]
    if not created:
        facts = await services.tag(blob_id, query.tag)
    headers = {"Location": f"/blobs/{blob_id}", "SDC-Id": blob_id, "Cache-Control": "no-store"}
    body = services.info(blob_id, blob, len(content), facts).model_dump_json()
    return Response(body, 201 if created else 200, headers, "application/json")


@router.get("/{blob_id}", dependencies=[needs("render")], response_class=Response, responses=BLOB_REPLIES)
@router.head("/{blob_id}", dependencies=[needs("render")], include_in_schema=False)
async def blob(request: Request, blob_id: BlobId, _: NoParameters, services: InjectedServices) -> Response:
    """The stored bytes, or a range of them; the entity tag is strong.  Neither 304 nor HEAD reads them."""
    facts, if_none_match = await services.require(blob_id), header_of(request, "if-none-match")
    content = None
    if "digest" not in facts or (request.method == "GET" and if_none_match is None):
        content = await services.read(blob_id)
    entity_tag = f'"{facts["digest"] if content is None else digest_of(content)}"'
    _require_match(request, entity_tag)
    keeping = f"{services.access.keepers}, max-age={YEAR_S}, immutable"
    headers = {"ETag": entity_tag, "Cache-Control": keeping, **purge_tags(blob_id, facts.get("tags", ()))}
    if matches(if_none_match, entity_tag):
        return Response(None, 304, headers)
    headers |= {"X-Content-Type-Options": "nosniff", "Content-Disposition": disposition(f"{blob_id}.sdc"), "Accept-Ranges": "bytes"}
    if request.method == "HEAD":
        length = await services.size(blob_id) if content is None else len(content)
        return Response(None, 200, {**headers, "Content-Length": str(length)}, BLOB_TYPE)
    if content is None:
        content = await services.read(blob_id)
    part = asked_range(header_of(request, "range"), header_of(request, "if-range"), entity_tag, len(content))
    if part is None:
        return Response(content, 200, headers, BLOB_TYPE)
    begin, end = part
    return Response(content[begin:end], 206, {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}, BLOB_TYPE)


@router.get("/{blob_id}/info", dependencies=[needs("render")], response_model=BlobDetails, responses=NO_ID)
async def blob_info(blob_id: BlobId, _: NoParameters, services: InjectedServices) -> Response:
    """What the blob and its sidecar say."""
    content = await services.read(blob_id)
    blob = services.pipeline.parse(content)
    facts = await services.blobs.facts(blob_id)
    coded_width, coded_height = blob.coded_size
    details = BlobDetails(
        **services.info(blob_id, blob, len(content), facts).model_dump(),
        step=step_size(blob.step_index),
        alpha=container.ALPHA in blob.sections,
        coded_width=coded_width,
        coded_height=coded_height,
        tiled=blob.tiling is not None,
        sections={container.SECTION_NAMES[kind]: len(part) for kind, part in blob.sections.items()},
        tags=facts.get("tags", []),
        source_bytes=facts.get("source_bytes"),
    )
    return Response(details.model_dump_json(), 200, {"Cache-Control": "no-store"}, "application/json")


@router.delete(
    "/{blob_id}", dependencies=[needs("admin")], status_code=204, response_class=Response, responses={412: {"model": Problem}, **NO_ID}
)
async def delete_blob(request: Request, blob_id: BlobId, _: NoParameters, services: InjectedServices) -> Response:
    """Needs a key with the scope ``admin`` as a bearer token; 403 until there is one."""
    if header_of(request, "if-match") is not None:
        _require_match(request, f'"{digest_of(await services.read(blob_id))}"')
    deleted = await services.blobs.delete(blob_id)
    await services.cache.forget(blob_id)
    if not deleted:
        await services.require(blob_id)
        raise NotFound("there is no blob with this id")
    return Response(None, 204, {"Cache-Control": "no-store"})


def _require_match(request: Request, entity_tag: str) -> None:
    """Raise PreconditionFailed where the request is meant for another file than the one that is stored."""
    if misses(header_of(request, "if-match"), entity_tag):
        raise PreconditionFailed(f"If-Match names another file: the one that is stored is {entity_tag}")
