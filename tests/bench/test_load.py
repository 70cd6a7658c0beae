"""The load generator against a server made up for the purpose."""

import asyncio
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.bench import load as load_module
from service.bench.load import PROBE_DEADLINES, Load, Outcome, batches, batches_of, length, mixed_pictures, pixels_of, stages, timeline
from service.bench.results import Percentiles
from service.bench.serving import Server
from service.engine.engine import Engine
from service.settings import Settings

NONE = Percentiles(median=0, p95=0, p99=0)


class Stub:
    """Renders: one of three takes half a second, one is 503 with Retry-After, one 503 without.  Remembers what it was sent.

    Of uploads those that ask for more than ``most`` bytes are refused.
    """

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.arrived: list[float] = []
        self.bodies: list[bytes] = []
        self.deadlines: set[str | None] = set()
        self.most = 1 << 40
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                stub.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                if int(self.path.rpartition("=")[2]) > stub.most:
                    self.reply(503, b"x", {"Retry-After": "3"})
                else:
                    self.reply(201, json.dumps({"links": {"webp": "/render/a.webp"}}).encode())

            def do_GET(self) -> None:
                stub.arrived.append(time.monotonic())
                stub.deadlines.add(self.headers["SDC-Deadline-Ms"])
                which = next(stub.numbers) % 3
                if which == 0:
                    time.sleep(0.5)
                self.reply(503 if which else 200, b"x", {"Retry-After": "3"} if which == 1 else {})

            def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    threading.Thread(target=stub.http.serve_forever, daemon=True).start()
    yield stub
    stub.http.shutdown()
    stub.http.server_close()


def load(stub: Stub, folder: Path) -> Load:
    port = stub.http.server_address[1]
    process = subprocess.Popen(["true"])
    process.wait()
    return Load(Server(f"http://127.0.0.1:{port}", port, process, None), folder, mixed_pictures()[:3])


def test_requests_leave_at_a_constant_rate_whatever_the_server_does(stub: Stub, tmp_path: Path) -> None:
    outcome = load(stub, tmp_path).run("render", rate=20, seconds=3, deadline_ms=700)
    assert 57 <= len(stub.arrived) <= 63
    assert outcome.accepted + outcome.refused == len(stub.arrived)
    assert outcome.accepted == pytest.approx(len(stub.arrived) / 3, abs=1)
    assert outcome.lawless == pytest.approx(len(stub.arrived) / 3, abs=1)
    assert outcome.failed == outcome.dropped == 0
    assert outcome.latency.median >= 500
    assert stub.deadlines == {"700"}
    assert [second.at for second in outcome.timeline] == list(range(len(outcome.timeline)))
    assert 3 <= len(outcome.timeline) <= 9
    assert sum(second.accepted for second in outcome.timeline) == outcome.accepted
    assert sum(second.refused for second in outcome.timeline) == outcome.refused
    assert all((second.median_ms is None) == (second.accepted == 0) for second in outcome.timeline)


@pytest.mark.parametrize("lost", ["refused", "failed", "dropped"])
def test_capacity_is_what_is_served_of_what_was_to_be_sent(lost: str, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of ten a second has that capacity, whether it refuses the others, fails at them, or they cannot be sent."""

    def run(_: Load, operation: str, rate: float, seconds: float, deadline_ms: float) -> Outcome:
        accepted = round(min(rate, 10) * seconds)
        told = {"accepted": accepted, "refused": 0, "failed": 0, "dropped": 0, lost: round(rate * seconds) - accepted}
        return Outcome(**told, lawless=0, latency=NONE, refusal=NONE, timeline=[])

    monkeypatch.setattr(Load, "run", run)
    assert 9 < load(stub, tmp_path).capacity("compress", 13, 20, 500) <= 10.1


@pytest.mark.parametrize(("guess", "tried"), [(13.0, 5), (10.5, 3), (9.0, 4)])
def test_no_rate_is_tried_twice(guess: float, tried: int, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def run(_: Load, operation: str, rate: float, seconds: float, deadline_ms: float) -> Outcome:
        rates.append(rate)
        told = {"accepted": 100, "refused": 0 if rate < 10.1 else 5, "failed": 0, "dropped": 0}
        return Outcome(**told, lawless=0, latency=NONE, refusal=NONE, timeline=[])

    monkeypatch.setattr(Load, "run", run)
    found = load(stub, tmp_path).capacity("compress", guess, 20, 500)
    assert found == max(rate for rate in rates if rate < 10.1)
    assert len(rates) == tried
    assert all(right > 1.02 * left for left, right in itertools.pairwise(sorted(rates)))


@pytest.mark.parametrize("deadline_ms", [1600, 2800])
def test_a_queue_cannot_pass_for_capacity(deadline_ms: float, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of ten a second that is asked for more refuses nobody until pictures of one deadline wait."""
    probe = length(PROBE_DEADLINES * deadline_ms / 1000, 15, 60)

    def run(_: Load, operation: str, rate: float, seconds: float, deadline_ms: float) -> Outcome:
        sent = rate * seconds
        accepted = min(sent, 10 * (seconds + deadline_ms / 1000))
        told = {"accepted": round(accepted), "refused": round(sent - accepted), "failed": 0, "dropped": 0}
        return Outcome(**told, lawless=0, latency=NONE, refusal=NONE, timeline=[])

    monkeypatch.setattr(Load, "run", run)
    assert 9.5 < load(stub, tmp_path).capacity("compress", 9.7, probe, deadline_ms) < 10.7


@pytest.mark.parametrize(("bare", "calm_seconds", "probe"), [(10.0, 50, 32), (1.0, 120, 60), (100.0, 15, 15)])
def test_the_parts_are_as_long_as_they_must_be(
    bare: float, calm_seconds: float, probe: float, stub: Stub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred unloaded requests and twenty deadlines, but no more than a slow machine has time for, and no less than a part."""
    runs: list[tuple[float, float]] = []
    p95 = 3200 / bare  # a deadline of 1.6 s where ten a second are made

    def run(_: Load, operation: str, rate: float, seconds: float, deadline_ms: float = 0) -> Outcome:
        runs.append((rate, seconds))
        latency = Percentiles(median=p95 / 2, p95=p95, p99=p95)
        served = {"accepted": round(rate * seconds), "refused": 0, "failed": 0, "dropped": 0}
        return Outcome(**served, lawless=0, latency=latency, refusal=NONE, timeline=[])

    async def bare_loop(*_: object, **__: object) -> dict[str, dict[int, float]]:
        return {"render": {1: bare}}

    for name, value in {"run": run, "throughput": lambda *_: bare}.items():
        monkeypatch.setattr(Load, name, value)
    monkeypatch.setattr(load_module, "bare_loop", bare_loop)
    monkeypatch.setattr(load_module, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(Server, "metrics", lambda _: {"process_resident_memory_bytes": 1.0})
    found = load_module._measure(load(stub, tmp_path), settings, "render", {1: bare}, {1: bare}, 60, 15)
    assert runs[0] == pytest.approx((0.2 * bare, calm_seconds))
    assert found.unloaded_count == round(0.2 * bare * calm_seconds)
    assert found.probe_seconds == pytest.approx(probe)
    assert {seconds for rate, seconds in runs[1:] if rate != found.offered} == {found.probe_seconds}


def test_the_bare_loop_is_counted_while_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two a second, the first one late, the last one after the time."""
    now = 0.0

    async def call(number: int) -> None:
        nonlocal now
        now += 1.25 if number == 0 else 0.5

    monkeypatch.setattr(load_module, "time", SimpleNamespace(monotonic=lambda: now))
    assert asyncio.run(load_module._closed(call, 1, 8)) == 2
    now = 0.0
    assert asyncio.run(load_module._closed(call, 1, 1)) == 1 / 1.25, "one call takes longer than there is time"


def test_a_load_of_which_nothing_came_back_is_not_served() -> None:
    outcome = Outcome(accepted=0, refused=0, failed=0, lawless=0, latency=NONE, refusal=NONE, dropped=0, timeline=[])
    assert outcome.unserved_share == 1


def test_every_upload_is_a_new_one(stub: Stub, tmp_path: Path) -> None:
    generator = load(stub, tmp_path)
    prepared = len(stub.bodies)
    for _ in range(2):
        generator.run("compress", rate=20, seconds=1)
    sent = stub.bodies[prepared:]
    assert len(sent) >= 36
    assert len(set(sent)) == len(sent)
    sources = [source for source, _ in generator.jobs]
    assert all(any(body.startswith(source) for source in sources) for body in sent)


def test_of_the_accepted_it_is_known_how_large_they_were(stub: Stub, tmp_path: Path) -> None:
    """A server that refuses large pictures serves more of them, and less."""
    generator = load(stub, tmp_path)
    *small, largest = sorted(generator.jobs, key=lambda job: job[1])
    stub.most = largest[1] - 1
    found = generator.run("compress", rate=20, seconds=1).timeline
    accepted = sum(second.accepted for second in found)
    assert accepted and sum(second.refused for second in found)
    pixels = [pixels_of(source) for source, _ in small]
    assert sum(second.pixels or 0 for second in found) / accepted == pytest.approx(sum(pixels) / 2, rel=0.1)
    assert max(pixels) < pixels_of(largest[0])


def test_the_pictures_are_the_same_every_time() -> None:
    assert mixed_pictures() == mixed_pictures()


def test_the_bare_loop_is_run_once_where_pictures_are_computed_one_by_one(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(small_model, dtype="float32")
    monkeypatch.setattr(Engine, "batch_of", lambda _, wanted: wanted)
    assert batches_of(engine) == (1, 2, 4)
    monkeypatch.setattr(Engine, "batch_of", lambda *_: 1)
    assert batches_of(engine) == (1,)


GROWN = {
    "sdc_batch_size_bucket{le=1.0,op=encode}": 3.0,
    "sdc_batch_size_bucket{le=2.0,op=encode}": 3.0,
    "sdc_batch_size_bucket{le=4.0,op=encode}": 10.0,
    "sdc_batch_size_bucket{le=+Inf,op=encode}": 10.0,
    "sdc_batch_size_bucket{le=+Inf,op=render}": 99.0,
    "sdc_stage_seconds_count{stage=encode}": 10.0,
    "sdc_stage_seconds_sum{stage=encode}": 0.5,
    "sdc_stage_seconds_bucket{le=0.025,stage=encode}": 0.0,
    "sdc_stage_seconds_bucket{le=0.05,stage=encode}": 5.0,
    "sdc_stage_seconds_bucket{le=0.1,stage=encode}": 10.0,
    "sdc_stage_seconds_bucket{le=+Inf,stage=encode}": 10.0,
    "sdc_stage_seconds_count{stage=queue}": 4.0,
    "sdc_stage_seconds_sum{stage=queue}": 400.0,
    "sdc_stage_seconds_bucket{le=60.0,stage=queue}": 1.0,
    "sdc_stage_seconds_bucket{le=+Inf,stage=queue}": 4.0,
    "sdc_stage_seconds_count{stage=write}": 0.0,
    "sdc_stage_seconds_sum{stage=write}": 0.0,
}
"""what a server's metrics grew by"""


def test_batches_and_stages_are_what_the_histograms_grew_by() -> None:
    assert batches(GROWN, "encode") == {"1": 3, "2": 0, "4": 7}
    queue, encode = stages(GROWN)
    assert (queue.name, queue.count, queue.mean_ms, queue.p95_ms) == ("queue", 4, 100_000, 60_000)
    assert (encode.name, encode.count, encode.mean_ms) == ("encode", 10, 50)
    assert encode.p95_ms == pytest.approx(50 + 50 * 0.9)


def test_a_second_without_replies_is_in_the_timeline() -> None:
    found = {
        "accepted_in_second_3": {"count": 2, "med": 5.0, "p(95)": 9.0},
        "accepted_pixels_in_second_3": {"count": 700},
        "refused_in_second_5": {"count": 1},
        "accepted_ms": {"count": 2},
    }
    assert [(second.at, second.accepted, second.pixels, second.refused, second.median_ms) for second in timeline(found)] == [
        (3, 2, 700, 0, 5.0), (4, 0, 0, 0, None), (5, 0, 0, 1, None)
    ]  # fmt: skip
    assert timeline({"accepted_ms": {"count": 2}}) == []
