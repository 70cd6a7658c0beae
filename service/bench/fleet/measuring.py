"""Measures what the simulator is fed with, on this machine: each part of a picture alone, both sizes of batches, the whole under load, and
how long a process takes to get ready."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import httpx

from service.batching.admission import Claim
from service.batching.batcher import Batcher
from service.batching.cpu import CpuPool
from service.batching.device import Ending, results_of
from service.batching.device import Operation as DeviceOperation
from service.bench.fleet.events import Events
from service.bench.fleet.measured import Measured, Operation, Picture
from service.bench.fleet.replica import Limits, Replica, Request
from service.bench.load import Job, bare_loop, mixed_pictures
from service.bench.pictures import machine
from service.bench.serving import serving
from service.loading import loaded
from service.options import CompressOptions, RenderOptions
from service.pipeline import Pipeline, device_operations
from service.process import tune
from service.settings import Settings

KINDS = 6
"""of the photographs of ``sdc bench load``"""
ROUNDS = 4
STARTS = 3
OPERATIONS: tuple[Operation, ...] = ("compress", "render")


class _Watched(Batcher):
    """Remembers the last item and every batch."""

    def __init__(self, operations: dict[str, DeviceOperation], settings: Settings) -> None:
        self.last: tuple[str, Hashable, Any, int] | None = None
        """operation, shape, payload, pixels"""
        self.took: dict[int, list[float]] = {}
        """seconds of batches, by their size"""
        watched = {name: self._timed(call) for name, call in operations.items()}
        super().__init__(
            watched, settings.max_batch, settings.max_queued_pixels, settings.max_delay_ms / 1000, CpuPool(settings.cpu_workers)
        )

    def _timed(self, call: DeviceOperation) -> DeviceOperation:
        def timed(items: Sequence[Any]) -> Ending:
            started, given = time.perf_counter(), call(items)

            def end() -> Sequence[Any]:
                results = results_of(given)
                self.took.setdefault(len(items), []).append(time.perf_counter() - started)
                return results

            return end

        return timed

    async def submit_for(self, claim: Claim, shape: Hashable, payload: Any, pixels: int) -> Any:
        self.last = (claim.operation, shape, payload, pixels)
        return await super().submit_for(claim, shape, payload, pixels)


async def _pictures(settings: Settings, jobs: list[Job], outside_s: dict[Operation, float]) -> tuple[str, int, list[Picture]]:
    """The model, how many pictures a full batch has, and every job as both operations."""
    tune()
    engine, codec = await loaded(settings)
    settings = settings.model_copy(update={"max_batch": engine.batch_of(settings.max_batch)})
    batcher = _Watched(device_operations(engine), settings)
    pipeline, found = Pipeline(engine, codec, batcher, settings), []
    try:
        await pipeline.warm_up()
        for source, size in jobs:
            blob = (await pipeline.compress(source, CompressOptions(max_bytes=size))).content
            found += [await _picture(pipeline, batcher, each, source, size, blob, outside_s[each]) for each in OPERATIONS]
    finally:
        await pipeline.close()
    return engine.description, settings.max_batch, found


async def _picture(
    pipeline: Pipeline, batcher: _Watched, operation: Operation, source: bytes, size: int, blob: bytes, outside_s: float
) -> Picture:
    begin, finish = ("open", "code") if operation == "compress" else ("read", "write")
    begun, finished = [], []
    for number in range(1 + ROUNDS):
        if number == 1:
            batcher.took.clear()
        if operation == "compress":
            seconds = (await pipeline.compress(source, CompressOptions(max_bytes=size))).seconds
        else:
            seconds = (await pipeline.render(blob, RenderOptions("webp"))).seconds
        begun.append(seconds[begin])
        finished.append(seconds[finish])
    assert batcher.last is not None
    name, shape, payload, pixels = batcher.last
    alone = batcher.took[1]
    await batcher.warm_up(name, shape, payload, pixels)
    full = batcher.took[pipeline.settings.max_batch][1:]  # the first makes the kernels
    return Picture(
        operation=operation, shape=str(shape), pixels=pixels, begin_s=begun[1:], alone_s=alone[:ROUNDS], full_s=full,
        finish_s=finished[1:], outside_s=[outside_s],
    )  # fmt: skip


def _ready_and_outside(settings: Settings, jobs: list[Job]) -> tuple[float, dict[Operation, float]]:
    """Median seconds from the start of a real process to its readiness; and what HTTP and the store add to a picture."""
    ready = []
    for _ in range(STARTS):
        started = time.monotonic()
        with (
            tempfile.TemporaryDirectory() as name,
            serving(
                Path(name), Path(name) / "log", SDC_MODEL=str(settings.model), SDC_LOG_LEVEL="error", SDC_RENDER_CACHE_BYTES="0"
            ) as server,
            httpx.Client(base_url=server.base, timeout=120) as client,
        ):
            ready.append(time.monotonic() - started)
            outside: dict[Operation, list[float]] = {operation: [] for operation in OPERATIONS}
            for source, size in jobs[:ROUNDS]:
                for number in range(2):
                    made = _timed_reply(client, "POST", f"/compress?max_bytes={size}", source + number.to_bytes(8, "big"))
                    shown = _timed_reply(client, "GET", f"{made[0]}?q={81 + number}", b"")
                    outside["compress"].append(made[1])
                    outside["render"].append(shown[1])
    return sorted(ready)[STARTS // 2], {operation: sorted(values)[len(values) // 2] for operation, values in outside.items()}


def _timed_reply(client: Any, method: str, address: str, body: bytes) -> tuple[str, float]:
    """Where the picture is, and the seconds that no stage accounts for."""
    started = time.perf_counter()
    reply = client.request(method, address, content=body).raise_for_status()
    took = time.perf_counter() - started
    stages = sum(float(each.rpartition("=")[2]) for each in reply.headers["server-timing"].split(","))
    return (reply.json()["links"]["webp"] if method == "POST" else ""), max(0.0, took - stages / 1000)


def saturated(measured: Measured, limits: Limits, operation: Operation, at_once: int, pictures: int) -> float:
    """Pictures a second of one simulated replica with so many always inside, in turn."""
    events, rng, kinds = Events(), random.Random(1), measured.of(operation)
    replica = Replica(events, limits, measured, rng)
    begun = 0

    def following(*_: object) -> None:
        nonlocal begun
        if begun < pictures:
            begun += 1
            replica.arrive(Request(kinds[begun % len(kinds)], measured.contention[operation], events.now, float("inf"), following))

    for _ in range(at_once):
        events.at(0.0, following)
    events.run()
    return pictures / events.now


def measure(settings: Settings, seconds: float, told: Callable[[str], None]) -> Measured:
    """Everything, on a machine that should do nothing else meanwhile.

    Args:
        settings: of the process that is measured.
        seconds: of each bare loop.
        told: hears what is measured now.
    """
    jobs = mixed_pictures()[:KINDS]
    told("how long a process takes to get ready")
    ready_s, outside_s = _ready_and_outside(settings, jobs)
    told(f"{len(jobs)} photographs, each part alone")
    model, batch, pictures = asyncio.run(_pictures(settings, jobs, outside_s))
    measured = Measured(
        machine=machine(), model=model, max_batch=batch, cpu_workers=settings.cpu_workers, ready_s=ready_s,
        contention=dict.fromkeys(OPERATIONS, 1.0), pictures=pictures,
    )  # fmt: skip
    told("the bare loop under load")
    bare = asyncio.run(bare_loop(settings, jobs, seconds, (batch,)))
    limits = Limits(10**6, batch, 1 << 40, settings.max_delay_ms / 1000, settings.cpu_workers, float("inf"))
    contention: dict[Operation, float] = {}
    for operation in OPERATIONS:
        alone = saturated(measured, limits, operation, 3 * batch + settings.cpu_workers, 600)
        contention[operation] = alone / bare[operation][batch]
    return measured.model_copy(update={"contention": contention})
