"""The one place where errors become replies: ``application/problem+json`` (RFC 9457), for every error there is."""

from __future__ import annotations

import json
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service import errors
from service.api.schemas import complaint
from service.batching.admission import whole_seconds
from service.imaging.opening import ACCEPTED_TYPES

PROBLEM_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:sdc:problem:"

STATUS: dict[type[errors.SdcError], int] = {
    errors.BadParameter: 400,
    errors.UploadTooSlow: 408,
    errors.UnsupportedInput: 415,
    errors.UndecodablePicture: 422,
    errors.AnimatedPicture: 422,
    errors.TooManyPixels: 422,
    errors.TooManyBytes: 413,
    errors.SizeUnreachable: 422,
    errors.MethodUnavailable: 422,
    errors.NotABlob: 415,
    errors.BadBlob: 422,
    errors.NotFound: 404,
    errors.Gone: 410,
    errors.PreconditionFailed: 412,
    errors.RangeNotSatisfiable: 416,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.QuotaExceeded: 429,
    errors.Overloaded: 503,
    errors.StoreUnavailable: 503,
    errors.StoreTooSlow: 504,
    errors.DeviceFailed: 500,
}


def status_of(error: errors.SdcError) -> int:
    """HTTP status of an error: that of its nearest ancestor in the table."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None, **extra: Any) -> Response:
    """A problem reply; never cached beyond a few seconds, and then only where the status is about the id."""
    body = {"type": TYPE_PREFIX + kind, "title": kind.replace("-", " ").capitalize(), "status": status, "detail": detail, **extra}
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    if request_id:
        body["request_id"] = request_id
    cache = "public, max-age=10" if status in (404, 410) else "no-store"
    all_headers = {"Cache-Control": cache, "X-Content-Type-Options": "nosniff", **(headers or {})}
    return Response(json.dumps(body), status, all_headers, PROBLEM_TYPE)


def reply_to(error: errors.SdcError, advice: str = "") -> Response:
    """The reply for an error of our own; ``advice``: what only the request tells."""
    headers: dict[str, str] = {}
    extra: dict[str, Any] = {}
    detail = error.detail
    if isinstance(error, errors.Overloaded):
        headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, errors.QuotaExceeded):
        headers["Retry-After"] = str(whole_seconds(error.retry_after_s))
    elif isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="sdc"'
    elif isinstance(error, errors.StoreUnavailable):
        headers["Retry-After"] = "5"
        detail += ": its own words are in the service's log" if error.own_words else ""
    elif isinstance(error, errors.RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    elif isinstance(error, errors.SizeUnreachable):
        extra["best_bytes"] = error.best_bytes
    elif isinstance(error, errors.TooManyPixels) and error.max_pixels is not None:
        extra["max_pixels"] = error.max_pixels
    elif isinstance(error, errors.UnsupportedInput):
        extra["accepted"] = list(ACCEPTED_TYPES)
        headers["Accept"] = ", ".join(ACCEPTED_TYPES)
    return problem(status_of(error), error.kind, detail + advice, headers, **extra)


def answer(error: errors.SdcError, advice: str = "") -> Response:
    """The reply for an error of our own, and a line in the log where the service is to blame."""
    if status_of(error) >= 500 and not isinstance(error, errors.Overloaded):
        structlog.get_logger().error("request failed", kind=error.kind, detail=error.detail, exc_info=error)
    return reply_to(error, advice)


def _advice(request: Request, error: errors.SdcError) -> str:
    """For whoever sent a file as a form, which is what ``curl -d`` says that it sends, and it is not whole then."""
    form = request.headers.get("content-type", "").lower().startswith("application/x-www-form-urlencoded")
    damaged = isinstance(error, (errors.UnsupportedInput, errors.UndecodablePicture, errors.NotABlob, errors.CorruptBlob))
    return "; if curl -d sent it, use --data-binary: -d leaves bytes out" if form and damaged else ""


def unexpected() -> Response:
    """The reply for an error that nobody foresaw: nothing of it leaks."""
    return problem(500, errors.SdcError.kind, "the service failed; the request id finds it in the log")


def install(app: FastAPI, routers: list[APIRouter]) -> None:
    """Answer every foreseen exception of the app with a problem; ``middleware.Telling`` answers the others."""

    def methods_at(request: Request) -> set[str]:
        """Methods that some route answers at the request's path; the framework names only those of the first."""
        routes = [route for router in routers for route in router.routes]
        there = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        return {method for route in there for method in getattr(route, "methods", None) or ()}

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.SdcError)
        return answer(error, _advice(request, error))

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(400, errors.BadParameter.kind, complaint(error.errors()))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kinds = {400: errors.BadParameter.kind, 404: errors.NotFound.kind, 405: "method-not-allowed"}
        headers, detail = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            detail = "there is nothing at this address: /docs has those that there are"
        elif error.status_code == 405 and (methods := sorted(methods_at(request))):
            headers["Allow"] = ", ".join(methods)
            detail = f"this address does not answer {request.method}: use {' or '.join(methods)}"
        return problem(error.status_code, kinds.get(error.status_code, "http-error"), detail, headers)

    app.add_exception_handler(errors.SdcError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
