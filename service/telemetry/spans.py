"""Spans of OpenTelemetry.  Imported by ``service.telemetry.traces`` alone, and only where traces are wanted: the package is an extra.

Sampling, the queue to the collector and what else OpenTelemetry reads from the environment (``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``,
``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_RESOURCE_ATTRIBUTES``) are as its specification says.  Spans go to the collector from a thread of
their own; where it does not take them the queue is full, they are dropped, and nobody waits.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__

TRACES_PATH = "/v1/traces"
"""of OTLP over HTTP"""


def otlp_exporter(endpoint: str) -> SpanExporter:
    """To the collector at a base address."""
    return OTLPSpanExporter(endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH)


class ServerSpan:
    """A request under way."""

    def __init__(self, span: Span, token: Token[Context]) -> None:
        self._span, self._token = span, token

    @property
    def trace_id(self) -> str:
        """32 hexadecimal characters, as logs and headers have it."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def end(self, name: str, attributes: Mapping[str, Any], failure: str | None) -> None:
        """In the task that began it.

        Args:
            name: method and route.
            attributes: what is known by now.
            failure: what went wrong where the service is to blame.
        """
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failure is not None:
            self._span.set_status(Status(StatusCode.ERROR))
            self._span.set_attribute("error.type", failure)
        self._span.end()
        contexts.detach(self._token)


class Spans:
    """Makes spans and hands them to an exporter; what each call means is said in ``service.telemetry.traces``."""

    def __init__(self, exporter: SpanExporter) -> None:
        ours = {"service.name": "sdc", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
        self._exporter = exporter
        self._processor = BatchSpanProcessor(exporter)
        self._tracer = self._tracer_of(resource, None)
        # A batch is traced if one of its requests is: the dice of OTEL_TRACES_SAMPLER have been thrown for those.
        self._batches = self._tracer_of(resource, ALWAYS_ON)
        self._propagator = TraceContextTextMapPropagator()

    def _tracer_of(self, resource: Resource, sampler: Sampler | None) -> trace.Tracer:
        provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return provider.get_tracer("sdc", __version__)

    def request(self, method: str, traceparent: str | None, tracestate: str | None, attributes: Mapping[str, Any]) -> ServerSpan:
        context = Context()
        if traceparent is not None:
            carrier = {"traceparent": traceparent} | ({} if tracestate is None else {"tracestate": tracestate})
            context = self._propagator.extract(carrier, context)
        span = self._tracer.start_span(method, context, SpanKind.SERVER, attributes)
        return ServerSpan(span, contexts.attach(trace.set_span_in_context(span, context)))

    def stage(self, name: str, seconds: float, ended_s_ago: float, failure: str | None, batch: SpanContext | None) -> None:
        if not self.here().trace_flags.sampled:
            return
        end = time.time_ns() - int(ended_s_ago * 1e9)
        links = None if batch is None else [Link(batch)]
        span = self._tracer.start_span(name, links=links, start_time=end - int(seconds * 1e9))
        if failure is not None:
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", failure)
        span.end(end)

    def here(self) -> SpanContext:
        return trace.get_current_span().get_span_context()

    def link(self, there: SpanContext) -> None:
        if there != self.here():
            trace.get_current_span().add_link(there)

    @contextmanager
    def batch(
        self, operation: str, requests: Iterable[SpanContext | None], began_s_ago: float, attributes: Mapping[str, int]
    ) -> Iterator[None]:
        traced = {each.span_id: each for each in requests if each is not None and each.trace_flags.sampled}
        if not traced:
            yield
            return
        named: dict[str, str | int] = {"sdc.operation": operation}
        named |= {f"sdc.batch.{name}": value for name, value in attributes.items()}
        links, began = [Link(each) for each in traced.values()], time.time_ns() - int(began_s_ago * 1e9)
        name = f"batch {operation}"
        with self._batches.start_as_current_span(name, Context(), attributes=named, links=links, start_time=began):
            yield

    def fail(self, why: str) -> None:
        trace.get_current_span().set_status(Status(StatusCode.ERROR, why))

    def close(self, timeout_s: float) -> bool:
        """Send what is left; returns whether that was done in time.  What is still being sent then is given up."""
        # The processor waits for half a minute, whatever it is asked for.
        sender = threading.Thread(target=self._processor.shutdown, name="last-traces", daemon=True)
        sender.start()
        sender.join(timeout_s)
        if not sender.is_alive():
            return True
        self._exporter.shutdown()
        return False
