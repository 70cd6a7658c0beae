"""Traces: off unless they were started, and then each call here costs one ``if``.

    a request, as the client sees it          a batch, on the device's thread: a trace of its own
      open, queue, encode, code                 encode | unet, decode
      read, queue, unet, decode, write          linked to each of its requests, and from their stages

A batch has many requests, so none of them is its parent: it has links.  What a span is made of is known by ``service.telemetry.spans``
alone, which is imported when traces are started: OpenTelemetry is an extra.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import structlog

from service.errors import BadParameter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from service.telemetry.spans import ServerSpan, Spans

FLUSH_S = 3.0
"""what was not sent yet has so long when the service stops"""

There = Any
"""where a span is to be found again: what ``here`` gives and a link points to; None where there is none"""

_spans: Spans | None = None
_NOTHING: AbstractContextManager[None] = nullcontext()


def exporter_to(endpoint: str) -> SpanExporter:
    """Sends spans to a collector by OTLP over HTTP.

    Args:
        endpoint: its base address, ``http://collector:4318``.

    Raises BadParameter where OpenTelemetry is not installed.
    """
    try:
        from service.telemetry.spans import otlp_exporter
    except ModuleNotFoundError as error:
        raise BadParameter(
            f"SDC_OTLP_ENDPOINT is set and {error.name} is missing: pip install 'sdc[trace]', or unset SDC_OTLP_ENDPOINT"
        ) from error
    return otlp_exporter(endpoint)


def start(exporter: SpanExporter) -> None:
    """Make traces from here on; what they go to must not be used for anything else."""
    global _spans
    from service.telemetry.spans import Spans

    _spans = Spans(exporter)


async def stop() -> None:
    """Make no more, and send what there is, for ``FLUSH_S`` at most.  Nothing happens where traces are off."""
    global _spans
    spans, _spans = _spans, None
    if spans is not None and not await asyncio.to_thread(spans.close, FLUSH_S):
        structlog.get_logger().warning("the last traces were lost: the collector did not take them in time", seconds=FLUSH_S)


def on() -> bool:
    """Whether traces are made: where it takes work to say what a span shall hold, ask first."""
    return _spans is not None


def request(method: str, traceparent: str | None, tracestate: str | None, attributes: Mapping[str, Any]) -> ServerSpan | None:
    """Begin the span of a request; everything that its task, and the tasks it starts, do until ``ServerSpan.end`` belongs to it.

    Args:
        method: of HTTP, or ``HTTP`` for one that is none.
        traceparent: of W3C Trace Context, well-formed, where the client sent one: its trace is continued.
        tracestate: the header of that name.
        attributes: what is known at the beginning.
    """
    return None if _spans is None else _spans.request(method, traceparent, tracestate, attributes)


def stage(name: str, seconds: float, ended_s_ago: float = 0.0, failure: str | None = None, batch: There = None) -> None:
    """Note a stage that is over, as a child of the span in whose context this is called.

    Args:
        name: as in ``sdc_stage_seconds``.
        seconds: how long it took.
        ended_s_ago: seconds.
        failure: what ended it, the name of an error's class.
        batch: the span of the batch that did it.
    """
    if _spans is not None:
        _spans.stage(name, seconds, ended_s_ago, failure, batch)


def here() -> There:
    """The span in whose context this is called."""
    return None if _spans is None else _spans.here()


def link(there: There) -> None:
    """Let the span in whose context this is called point to another."""
    if _spans is not None and there is not None:
        _spans.link(there)


def batch(operation: str, requests: Iterable[There], began_s_ago: float, **attributes: int) -> AbstractContextManager[None]:
    """The span of a batch, to the end of ``with``, on this thread; there is none where none of its requests is traced.

    Args:
        operation: of the device.
        requests: what ``here`` gave for each item.
        began_s_ago: seconds before ``with``.
        attributes: numbers that say what the batch was, ``items``, ``size``, ``pixels``.
    """
    return _NOTHING if _spans is None else _spans.batch(operation, requests, began_s_ago, attributes)


def fail(why: str) -> None:
    """Mark the span in whose context this is called as failed."""
    if _spans is not None:
        _spans.fail(why)
