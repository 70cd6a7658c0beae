"""Traces: what spans there are, whose children they are, what a batch points to, and that a collector that is down is nobody's trouble."""

import asyncio
import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.api import tracing
from service.app import create_app
from service.batching.batcher import Batcher
from service.batching.shared import SharedRuns
from service.bench.serving import free_port, serving
from service.errors import BadParameter, DeviceFailed
from service.settings import Settings
from service.telemetry import traces
from tests.conftest import make_picture, png

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ENCODING, RENDERING = ["header", "open", "queue", "encode", "code"], ["read", "queue", "unet", "decode", "write"]


class Traced:
    """Traces that are on, and what came of them once they are off."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        traces.start(self._exporter)

    def finished(self) -> list[ReadableSpan]:
        """Every span, in the order in which they began."""
        asyncio.run(traces.stop())
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


@pytest.fixture
def traced() -> Iterator[Traced]:
    yield Traced()
    asyncio.run(traces.stop())


@pytest.fixture(scope="module")
def client(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(model=small_model, store_url=f"file://{tmp_path_factory.mktemp('store')}", dtype="float32")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def called(spans: list[ReadableSpan], name: str) -> ReadableSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def children(spans: list[ReadableSpan], parent: ReadableSpan) -> list[str]:
    return [span.name for span in spans if span.parent is not None and span.parent.span_id == parent.context.span_id]


def pointed_at(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


def test_the_way_of_a_picture(client: TestClient, traced: Traced) -> None:
    made = client.post("/compress?quality=41", content=png(make_picture(40, 56, 1)), headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    path = made.json()["links"]["webp"]
    assert client.get(path).status_code == 200
    spans = traced.finished()
    compress, render = called(spans, "POST /compress"), called(spans, "GET /render/{blob_id}.{extension}")
    assert children(spans, compress) == ENCODING
    assert children(spans, render) == RENDERING
    assert compress.parent is not None and f"{compress.parent.span_id:016x}" == PARENT
    assert f"{compress.context.trace_id:032x}" == TRACE != f"{render.context.trace_id:032x}"
    assert compress.kind is SpanKind.SERVER and compress.status.status_code is StatusCode.UNSET
    told = dict(compress.attributes or {})
    assert told | {"http.request.method": "POST", "url.path": "/compress", "url.query": "quality=41", "http.route": "/compress"} == told
    assert (told["http.response.status_code"], told["http.response.body.size"]) == (201, len(made.content))
    assert told["sdc.request_id"] == made.headers["x-request-id"]
    for span in spans:
        if span.parent is not None and span.parent.span_id == compress.context.span_id:
            assert span.start_time is not None and span.end_time is not None and compress.end_time is not None
            assert span.start_time <= span.end_time <= compress.end_time + 1_000_000


def test_a_batch_points_to_its_requests_and_they_to_it(client: TestClient, traced: Traced) -> None:
    path = client.post("/compress?quality=42", content=png(make_picture(40, 56, 2))).json()["links"]["webp"]
    client.get(path)
    spans = traced.finished()
    for request, batch, stages in (
        ("POST /compress", "batch encode", ["encode"]),
        ("GET /render/{blob_id}.{extension}", "batch render", ["unet", "decode"]),
    ):
        server, device = called(spans, request), called(spans, batch)
        assert device.parent is None
        assert device.context.trace_id != server.context.trace_id
        assert pointed_at(device) == {server.context.span_id}
        assert children(spans, device) == stages
        told = dict(device.attributes or {})
        assert (told["sdc.batch.items"], told["sdc.batch.size"]) == (1, 1)
        assert int(str(told["sdc.batch.pixels"])) >= 40 * 56
        ours = [span for span in spans if span.name in stages and span.parent is not None and span.parent.span_id == server.context.span_id]
        assert all(pointed_at(span) == {device.context.span_id} for span in ours)


def test_one_batch_of_several_requests(traced: Traced) -> None:
    """Two that wait while the device is busy: one span, two links.  A third that nobody traces is in the batch, and no link."""
    busy = threading.Event()

    def work(items: object) -> object:
        busy.wait(20)
        return items

    async def main() -> list[int]:
        batcher = Batcher({"encode": work}, 4, 1 << 20, 0)  # type: ignore[dict-item]
        found = []

        async def one(seed: int, flags: str) -> None:
            span = traces.request("GET", f"00-{seed:032x}-{PARENT}-{flags}", None, {})
            assert span is not None
            found.append(traces.here().span_id)
            await batcher.submit("encode", "shape", seed, 100)
            span.end(f"request {seed}", {}, None)

        first = asyncio.create_task(one(1, "01"))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(one(seed, flags)) for seed, flags in ((2, "01"), (3, "01"), (4, "00"))]
        await asyncio.sleep(0.05)
        busy.set()
        await asyncio.gather(first, *others)
        await batcher.close()
        return found

    ids = asyncio.run(main())
    alone, together = [span for span in traced.finished() if span.name == "batch encode"]
    assert pointed_at(alone) == {ids[0]}
    assert pointed_at(together) == set(ids[1:3])
    assert dict(together.attributes or {})["sdc.batch.items"] == 3


def test_a_batch_that_fails(traced: Traced) -> None:
    def broken(_: object) -> object:
        raise RuntimeError

    async def main() -> None:
        batcher = Batcher({"encode": broken}, 4, 1 << 20, 0)  # type: ignore[dict-item]
        span = traces.request("GET", None, None, {})
        with pytest.raises(DeviceFailed):
            await batcher.submit("encode", "shape", 1, 100)
        assert span is not None
        span.end("GET", {}, "500")
        await batcher.close()

    asyncio.run(main())
    spans = traced.finished()
    batch = called(spans, "batch encode")
    assert (batch.status.status_code, batch.status.description) == (StatusCode.ERROR, "1 of 1 items failed")
    assert called(spans, "GET").status.status_code is StatusCode.ERROR


def test_who_shares_a_run_points_to_whoever_started_it(traced: Traced) -> None:
    async def main() -> None:
        runs: SharedRuns[int] = SharedRuns()

        async def made() -> int:
            await asyncio.sleep(0.02)
            traces.stage("write", 0.01)
            return 1

        async def one(name: str) -> None:
            span = traces.request(name, None, None, {})
            assert span is not None
            await runs.run("key", made)
            span.end(name, {}, None)

        await asyncio.gather(one("first"), one("second"))

    asyncio.run(main())
    spans = traced.finished()
    first, second = called(spans, "first"), called(spans, "second")
    assert children(spans, first) == ["write"] and children(spans, second) == []
    assert pointed_at(second) == {first.context.span_id} and not first.links


@pytest.mark.parametrize(
    ("method", "path", "name", "status"),
    [
        ("GET", "/nowhere", "GET", 404),
        ("PURGE", "/render/x", "HTTP /render/{blob_id}", 405),
        ("GET", f"/render/{'a' * 26}", "GET /render/{blob_id}", 404),
        ("GET", f"/render/{'a' * 26}.webp?q=80", "GET /render/{blob_id}.{extension}", 308),
        ("GET", f"/blobs/{'a' * 26}/info", "GET /blobs/{blob_id}/info", 404),
        ("OPTIONS", "/compress", "OPTIONS /compress", 405),
    ],
)
def test_names_have_few_values(client: TestClient, traced: Traced, method: str, path: str, name: str, status: int) -> None:
    assert client.request(method, path, follow_redirects=False).status_code == status
    (span,) = traced.finished()
    assert (span.name, dict(span.attributes or {})["http.response.status_code"]) == (name, status)
    assert span.status.status_code is StatusCode.UNSET, "the client's mistake is not the service's"


def test_a_failure_of_ours_is_one(client: TestClient, traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.app.state.services.pipeline, "id_of", None)  # type: ignore[attr-defined]
    assert client.post("/compress", content=b"x").status_code == 500
    (span,) = traced.finished()
    assert (span.status.status_code, dict(span.attributes or {})["error.type"]) == (StatusCode.ERROR, "500")


def test_a_stage_that_fails_says_of_what(client: TestClient, traced: Traced) -> None:
    assert client.post("/compress", content=b"no picture").status_code == 415
    spans = traced.finished()
    opened = called(spans, "header")
    assert (opened.status.status_code, dict(opened.attributes or {})["error.type"]) == (StatusCode.ERROR, "UnsupportedInput")


def test_health_and_metrics_are_not_traced(client: TestClient, traced: Traced) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        client.get(path)
    assert traced.finished() == []


@pytest.mark.parametrize("name", ["sig", "SIG", "%73ig", "s%69g"])
def test_no_signature_is_told(client: TestClient, traced: Traced, name: str) -> None:
    path = f"/render/{'a' * 26}.webp?w=3&expires=5&key=k1&{name}=hush"
    client.get(path, headers={"authorization": "Bearer hush", "user-agent": "hush"}, follow_redirects=False)
    (span,) = traced.finished()
    assert "hush" not in span.to_json()
    assert dict(span.attributes or {})["url.query"] == f"w=3&expires=5&key=k1&{name}=REDACTED"


def test_a_query_is_told_as_it_came() -> None:
    assert tracing.harmless("a=1&b&c=&=d") == "a=1&b&c=&=d"


def test_who_hung_up_had_no_reply(client: TestClient, traced: Traced) -> None:
    async def gone() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        raise AssertionError

    scope = {
        "type": "http", "method": "POST", "path": "/compress", "raw_path": b"/compress", "query_string": b"",
        "headers": [(b"content-length", b"9")],
        "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    asyncio.run(client.app(scope, gone, send))  # type: ignore[arg-type]
    (span,) = traced.finished()
    told = dict(span.attributes or {})
    assert told["error.type"] == "no-reply" and "http.response.status_code" not in told


def test_what_the_client_does_not_want_traced_is_not(client: TestClient, traced: Traced) -> None:
    content = png(make_picture(40, 56, 3))
    assert client.post("/compress?quality=43", content=content, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"}).status_code == 201
    assert traced.finished() == []


def test_nothing_is_made_where_traces_are_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a span, not a word about one: what there would be to tell is not even put together."""
    assert not traces.on()
    monkeypatch.setattr(tracing, "begin", None)
    monkeypatch.setattr("service.batching.device.DeviceThread._traced_outcomes", None)
    assert client.post("/compress?quality=44", content=png(make_picture(40, 56, 4))).status_code == 201
    assert traces.here() is None
    with traces.batch("encode", [None], 0, items=1):
        pass
    asyncio.run(traces.stop())


def test_off_means_that_the_extra_is_not_even_loaded() -> None:
    """The framework looks for its interface, where it is installed; nobody looks for what is behind it."""
    loaded = "import sys, service.app; print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exp'))])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_the_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    # FastAPI brings the interface; the extra brings what sends
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "service.telemetry.spans", raising=False)
    app = create_app(settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:1"}))
    with pytest.raises(BadParameter, match=r"pip install 'sdc\[trace\]'"), TestClient(app):
        pass
    assert not traces.on()


class Held(SpanExporter):
    """A collector that takes nothing until it is told to."""

    def __init__(self) -> None:
        self.let_go, self.closed = threading.Event(), False

    def export(self, spans: object) -> SpanExportResult:
        self.let_go.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.closed = True


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a request: far more spans than the queue holds are made meanwhile."""
    monkeypatch.setattr(traces, "FLUSH_S", 0.1)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    exporter, started = Held(), time.monotonic()
    traces.start(exporter)

    async def main() -> None:
        for _ in range(500):
            span = traces.request("GET", None, None, {})
            assert span is not None
            span.end("GET", {}, None)
        await traces.stop()

    try:
        asyncio.run(main())
        assert time.monotonic() - started < 30
        assert exporter.closed
    finally:
        exporter.let_go.set()


class Collector(http.server.BaseHTTPRequestHandler):
    """OTLP over HTTP, as far as it takes to hear what is sent."""

    heard: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        assert self.path == "/v1/traces", self.path
        assert self.headers["content-type"] == "application/x-protobuf"
        self.heard.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Its base address, and what it has heard."""
    heard: list[ExportTraceServiceRequest] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Listening", (Collector,), {"heard": heard})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", heard
        server.shutdown()
        thread.join()


def test_a_real_collector_hears_it_all_by_the_end(small_model: Path, tmp_path: Path) -> None:
    """A real process: the last spans are sent as it stops, and the log has the trace of each request."""
    with collector() as (endpoint, heard):
        told = {
            "SDC_OTLP_ENDPOINT": endpoint, "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test", "OTEL_SERVICE_NAME": "pictures",
            "NO_PROXY": "127.0.0.1", "SDC_MODEL": str(small_model),
        }  # fmt: skip
        with serving(tmp_path, tmp_path / "log", **told) as server:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=7"}
            httpx.post(f"{server.base}/compress", content=png(make_picture(60, 60)), headers=headers, timeout=60).raise_for_status()
            httpx.get(f"{server.base}/nowhere", timeout=60)
    assert heard
    resources = {each.key: each.value.string_value for each in heard[0].resource_spans[0].resource.attributes}
    assert (resources["service.name"], resources["deployment.environment.name"]) == ("pictures", "test")
    assert resources["service.version"] and resources["service.instance.id"]
    spans = [span for request in heard for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
    (compress,) = [span for span in spans if span.name == "POST /compress"]
    assert (compress.trace_id.hex(), compress.parent_span_id.hex(), compress.trace_state) == (TRACE, PARENT, "vendor=7")
    stages = {span.name for span in spans if span.parent_span_id == compress.span_id}
    assert stages == set(ENCODING)
    (batch,) = [span for span in spans if span.name == "batch encode"]
    assert [link.span_id for link in batch.links] == [compress.span_id]
    (other,) = [span for span in spans if span.name == "GET"]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert [line["trace_id"] for line in lines if line["event"] == "request"] == [TRACE, other.trace_id.hex()]


def test_a_collector_that_is_not_there(small_model: Path, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path, tmp_path / "log", SDC_OTLP_ENDPOINT=endpoint, NO_PROXY="127.0.0.1", SDC_MODEL=str(small_model)) as server:
        httpx.post(f"{server.base}/compress", content=png(make_picture(60, 60)), timeout=60).raise_for_status()
        server.process.terminate()
        assert server.process.wait(30) in (0, -15)
    assert '"event": "stopped"' in (tmp_path / "log").read_text()
