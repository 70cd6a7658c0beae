"""What the span of a request says, by OpenTelemetry's conventions for HTTP: nothing of who asked, no signature, no body.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from starlette.types import Scope

from service.telemetry import traces

if TYPE_CHECKING:
    from service.telemetry.spans import ServerSpan

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
SECRET = ("sig",)
"""parameters whose value is nobody's business"""
RENDER_ROUTE = re.compile(r"/render/[^/]*?(\.[^/]*)?")


def begin(scope: Scope, request_id: str, traceparent: str | None, tracestate: str | None) -> ServerSpan | None:
    """The span of a request; None where traces are off."""
    method = scope["method"] if scope["method"] in METHODS else "_OTHER"
    said: dict[str, str | int] = {
        "http.request.method": method,
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version", "1.1"),
        "sdc.request_id": request_id,
    }
    if scope["query_string"]:
        said["url.query"] = harmless(scope["query_string"].decode("latin-1"))
    if scope.get("server"):
        said["server.address"], port = scope["server"]
        said |= {} if port is None else {"server.port": port}
    return traces.request(_verb(method), traceparent, tracestate, said)


def end(span: ServerSpan, scope: Scope, status: int | None, sent: int) -> None:
    """What is known at the end: the route, and status and bytes of the reply where there was one."""
    verb, path = _verb(scope["method"]), route(scope)
    said: dict[str, str | int] = {} if path is None else {"http.route": path}
    if status is None:
        said["error.type"] = "no-reply"
    else:
        said |= {"http.response.status_code": status, "http.response.body.size": sent}
    span.end(f"{verb} {path}" if path else verb, said, str(status) if status and status >= 500 else None)


def _verb(method: str) -> str:
    """How a method begins a span's name."""
    return method if method in METHODS else "HTTP"


def route(scope: Scope) -> str | None:
    """The route's pattern; that of a render too where it was answered in front of the routes."""
    routed = getattr(scope.get("route"), "path", None)
    if routed is not None:
        return str(routed)
    render = RENDER_ROUTE.fullmatch(scope["path"])
    return None if render is None else "/render/{blob_id}" + (".{extension}" if render.group(1) else "")


def harmless(query: str) -> str:
    """A query without the values of secret parameters, however their names are spelled."""
    parts = [part.partition("=") for part in query.split("&")]
    return "&".join(f"{name}=REDACTED" if unquote_plus(name).lower() in SECRET else name + equals + value for name, equals, value in parts)
