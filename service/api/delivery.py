"""GET|HEAD /render/<id>: what is meant, who may have it, and all replies that need no work.

    permission -> spelling (308) -> existence (404, 410) -> validators (304) -> HEAD -> pictures in memory -> the route

A deleted id is 410 and never 304; neither 304 nor HEAD reads a picture or a blob, or touches the device.

``Delivery`` stands in front of the door: what is in memory is told at once, however full the service is.  Whatever takes waiting, be it
only for the store, goes on to the route in ``service.api.pictures``.  Most requests of a CDN end here, so the way is kept short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.access import Access
from service.api.middleware import HttpMiddleware, header, negotiated
from service.api.negotiation import matches, pick_extension
from service.api.problems import answer
from service.api.services import Services, disposition, purge_tags
from service.api.variants import Address, Variants
from service.errors import SdcError
from service.imaging.writing import FORMATS
from service.options import RenderOptions
from service.pipeline import Pipeline
from service.storage.blobs import Facts

REDIRECT_S, YEAR_S = 86400, 31536000
EMBEDDABLE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Timing-Allow-Origin": "*",
    "Accept-Ranges": "none",
}
HIT = "sdc; hit"
"""RFC 9211"""
REMEMBERED, LONGEST_REMEMBERED = 4096, 1024
"""so many requests of at most that many characters, address and Accept header, are not understood anew"""


RawHeaders = list[tuple[bytes, bytes]]


@dataclass(frozen=True, eq=False)
class Wanted:
    """A picture, as a request asks for it."""

    address: Address
    extension: str
    options: RenderOptions
    name: str
    """of the variant: made of everything that decides on its bytes, equal on all replicas"""
    entity_tag: str
    headers: dict[str, str]
    """of 200 and 304"""
    more_headers: dict[str, str]
    """of 200 alone"""


@dataclass(frozen=True)
class Grant:
    """A picture that a request may have, and the Cache-Control of the reply."""

    wanted: Wanted
    cache_control: str

    def unchanged(self, facts: Facts) -> Response:
        """304; ``facts`` are what is known beside the blob."""
        return Ready(304, _raw_headers(self.wanted, self.cache_control, tuple(facts.get("tags", ())))[0])

    def reply(self, content: bytes | None, facts: Facts, **more: str) -> Response:
        """200 with the picture, or with its headers alone."""
        headers = _raw_headers(self.wanted, self.cache_control, tuple(facts.get("tags", ())))[1]
        length = {} if content is None else {"content-length": str(len(content))}
        return Ready(200, headers + _raw(length | more), content or b"")


class Ready(Response):
    """A reply whose headers were made before: making them takes longer than everything else about a 304."""

    def __init__(self, status: int, raw_headers: RawHeaders, content: bytes = b"") -> None:
        self.status_code, self.raw_headers, self.body, self.background = status, raw_headers, content, None


class Delivery(HttpMiddleware):
    """Answers what needs no waiting; hands the rest on, with a ``Grant`` in ``request.state.grant``."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self._understood = lru_cache(REMEMBERED)(_understand)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD") or not scope["path"].startswith("/render/"):
            await self.app(scope, receive, send)
            return
        try:
            reply = self._reply(scope, scope["app"].state.services)
        except SdcError as error:
            reply = answer(error)
        await (reply or self.app)(scope, receive, send)

    def _reply(self, scope: Scope, services: Services) -> Response | None:
        spelling = (scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")).decode("latin-1")
        accept = header(scope, b"accept") if negotiated(scope["path"]) else None
        remembered = len(spelling) + len(accept or "") <= LONGEST_REMEMBERED
        wanted = (self._understood if remembered else _understand)(services.variants, services.pipeline, spelling, accept)
        canonical, keeping = _permitted(wanted.address, services.access, header(scope, b"authorization"))
        if spelling != canonical:
            return Response(None, 308, {"Location": canonical, "Cache-Control": keeping(REDIRECT_S)})
        grant = Grant(wanted, f"{keeping(YEAR_S)}, immutable")
        facts = services.blobs.seen(wanted.address.blob_id)
        if facts is not None:
            reply = without_work(grant, facts, services, scope["method"], header(scope, b"if-none-match"))
            if reply is not None:
                return reply
        scope.setdefault("state", {})["grant"] = grant
        return None


def without_work(grant: Grant, facts: Facts, services: Services, method: str, if_none_match: str | None) -> Response | None:
    """The reply about a picture of a blob that exists, unless it has to be fetched or made."""
    wanted = grant.wanted
    if matches(if_none_match, wanted.entity_tag):
        return grant.unchanged(facts)
    blob_id, name = wanted.address.blob_id, wanted.name
    if method != "HEAD":
        kept = services.cache.in_memory(blob_id, name)
        return None if kept is None else grant.reply(kept, facts, **{"Cache-Status": HIT})
    length = services.cache.size(blob_id, name)
    known = {} if length is None else {"Content-Length": str(length), "Cache-Status": HIT}  # or else it takes rendering
    return grant.reply(None, facts, **known)


@lru_cache(REMEMBERED)
def _raw_headers(wanted: Wanted, cache_control: str, tags: tuple[str, ...]) -> tuple[RawHeaders, RawHeaders]:
    """Of 304 and, but for what differs from one reply to the next, of 200."""
    both = {"ETag": wanted.entity_tag, "Cache-Control": cache_control, **wanted.headers, **purge_tags(wanted.address.blob_id, tags)}
    return _raw(both), _raw({**both, **wanted.more_headers})


def _raw(headers: dict[str, str]) -> RawHeaders:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _understand(variants: Variants, pipeline: Pipeline, spelling: str, accept: str | None) -> Wanted:
    """What an address, and an Accept header where it has no extension, ask for; raises NotFound and BadParameter."""
    default_steps = pipeline.engine.manifest.default_steps
    address = variants.address(spelling, default_steps)
    variant, blob_id = address.variant, address.blob_id
    extension = variant.extension or pick_extension(accept)
    options = variant.options(extension)
    name = pipeline.variant(blob_id, options)
    headers = {"Content-Location": variant.path(blob_id, extension, default_steps)} if variant.extension is None else {}
    more_headers = {
        **EMBEDDABLE,
        "Content-Type": FORMATS[extension].content_type,
        "Content-Disposition": disposition(f"{blob_id}.{extension}"),
        "SDC-Variant": _told(pipeline, extension, options),
    }
    return Wanted(address, extension, options, name, f'W/"{name}"', headers, more_headers)


def _told(pipeline: Pipeline, extension: str, options: RenderOptions) -> str:
    """What is done to the picture, as a dictionary of RFC 9651, for those who look with ``curl -I``."""
    # which of several models made the blob is not known before it is read
    model = [] if pipeline.others else [f'model="{pipeline.engine.manifest.full_name}"']
    said = [*model, f"steps={pipeline.steps_of(options)}", f"format={extension}"]
    if not FORMATS[extension].lossless:
        said.append(f"q={options.quality}")
    if options.box is not None:
        said += [f"{name}={value}" for name, value in (("w", options.box.width), ("h", options.box.height)) if value is not None]
        said.append(f"fit={options.box.fit}")
    return ", ".join(said)


def _permitted(address: Address, access: Access, authorization: str | None) -> tuple[str, Callable[[int], str]]:
    """The one spelling of the address, signature included, and who may keep the reply for how long.

    What a signature opened is not kept longer than it lasts; what a key opened is for whoever has it.
    Raises Unauthorized, Forbidden or QuotaExceeded.
    """
    signer, query = access.signer, address.query
    if signer.on and query.sig is not None:
        canonical, left = signer.check(address.canonical, query.expires, query.key, query.sig)
        return canonical, lambda seconds: f"public, max-age={min(seconds, left)}"
    access.require("render", authorization, signable=True)
    return address.canonical, lambda seconds: f"{access.keepers}, max-age={seconds}"
