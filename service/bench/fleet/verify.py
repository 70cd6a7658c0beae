"""The simulator against three real processes of the service, whose device takes fixed times: the same requests at the same moments.

What is compared is the wait: from request to reply, beyond what the same request takes where nobody else asks.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.bench.fleet import fixed
from service.bench.fleet.measured import Measured, Operation, Picture
from service.bench.fleet.replica import Limits
from service.bench.fleet.simulation import Fleet, Surroundings, Told
from service.bench.pictures import machine
from service.bench.serving import Server, serving
from service.settings import Settings

PROCESSES = 3
FIRST_S = 0.3
"""the device takes for a picture by itself: long, so that the machine's own haste and hesitation are small beside it"""
FURTHER = 0.5
"""a further item of a batch takes so much of the first's time"""
SIDE = 64
COMPRESS_SHARE = 0.3
BLOBS = 12
UNLOADED = 8
"""requests of each operation, one at a time"""
UTILISATIONS = (0.5, 0.8, 0.95, 1.5)
"""of what full batches can do; the last one to see who is refused"""
WITHIN = 0.25
QUALITIES = 79
"""of WebP, below the default, which has an address without one"""


@dataclass(frozen=True)
class Sent:
    """A request and its reply."""

    operation: Operation
    replica: int
    moment: float
    """when it left, on the monotonic clock"""
    took_s: float
    status: int
    stages: dict[str, float]
    """seconds, by Server-Timing"""


@dataclass(frozen=True)
class Comparison:
    """Of one utilisation: waits in seconds, and the share that was refused."""

    utilisation: float
    requests: int
    measured: tuple[float, float]
    """p50, p99"""
    predicted: tuple[float, float]
    measured_refused: float
    predicted_refused: float

    @property
    def ratio(self) -> float:
        """Predicted p99 wait to the measured one."""
        return self.predicted[1] / self.measured[1]

    @property
    def holds(self) -> bool:
        return abs(self.ratio - 1) <= WITHIN


class Caller:
    """Sends requests to the processes, none of which can be answered from anything kept."""

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        out = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), (90, 120, 150)).save(out, "JPEG")
        self._source = out.getvalue()
        self._numbers = itertools.count()
        self._blobs: list[str] = []
        self._client = httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64))

    async def __aenter__(self) -> Caller:
        for _ in range(BLOBS):
            reply = await self._client.post(f"{self._servers[0].base}/compress", content=self._body())
            self._blobs.append(reply.raise_for_status().json()["links"]["webp"])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    def _body(self) -> bytes:
        """Bytes behind the end of a JPEG make it another photo with the same picture."""
        return self._source + next(self._numbers).to_bytes(8, "big")

    async def send(self, operation: Operation, replica: int) -> Sent:
        base, moment = self._servers[replica].base, time.monotonic()
        if operation == "compress":
            reply = await self._client.post(f"{base}/compress", content=self._body())
        else:
            number = next(self._numbers)
            blob = self._blobs[number % len(self._blobs)]
            reply = await self._client.get(f"{base}{blob}", params={"q": 1 + number // len(self._blobs) % QUALITIES})
        return Sent(operation, replica, moment, time.monotonic() - moment, reply.status_code, _stages(reply))


def _stages(reply: httpx.Response) -> dict[str, float]:
    parts = [each.strip().partition(";dur=") for each in reply.headers.get("server-timing", "").split(",") if each]
    return {name: float(milliseconds) / 1000 for name, _, milliseconds in parts}


@contextmanager
def processes(settings: Settings, first_s: float) -> Iterator[list[Server]]:
    """Three of them on one store, started one after the other."""
    given = dict.fromkeys(("encode", "render"), (first_s, FURTHER * first_s))
    environment = {
        "SDC_MODEL": str(settings.model), "SDC_SLOTS": str(settings.slots), "SDC_MAX_BATCH": str(settings.max_batch),
        "SDC_LOG_LEVEL": "error", "OMP_NUM_THREADS": "1",
        "SDC_RENDER_CACHE_BYTES": "0", fixed.VARIABLE: json.dumps(given),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        logs = [Path(name) / f"log{number}" for number in range(PROCESSES)]
        yield [stack.enter_context(serving(Path(name), log, fixed.__name__, **environment)) for log in logs]


async def measure(caller: Caller, settings: Settings, first_s: float) -> Measured:
    """What each part takes where nobody else asks, from the service's own words and the caller's clock."""
    pictures = []
    operations: tuple[Operation, ...] = ("compress", "render")
    for operation in operations:
        sent = [await caller.send(operation, number % PROCESSES) for number in range(UNLOADED + PROCESSES)][PROCESSES:]
        begin, device, finish = ("open", "encode", "code") if operation == "compress" else ("read", "decode", "write")
        full_s = first_s * (1 + FURTHER * (settings.max_batch - 1))
        pictures.append(
            Picture(
                operation=operation, shape="one", pixels=SIDE * SIDE, full_s=[full_s],
                begin_s=[each.stages[begin] for each in sent],
                alone_s=[each.stages[device] for each in sent],
                finish_s=[each.stages[finish] for each in sent],
                outside_s=[each.took_s - sum(each.stages[name] for name in (begin, device, finish)) for each in sent],
            )
        )  # fmt: skip
    return Measured(
        machine=machine(), model="fixed", max_batch=settings.max_batch, cpu_workers=settings.cpu_workers, ready_s=1,
        contention={"compress": 1, "render": 1}, pictures=pictures,
    )  # fmt: skip


async def _open_loop(caller: Caller, rate: float, seconds: float, seed: int) -> list[Sent]:
    """Poisson arrivals, whatever the processes do, each at any of them."""
    rng, begun, due, tasks = random.Random(seed), time.monotonic(), 0.0, []
    while (due := due + rng.expovariate(rate)) < seconds:
        operation: Operation = "compress" if rng.random() < COMPRESS_SHARE else "render"
        await asyncio.sleep(max(0.0, begun + due - time.monotonic()))
        tasks.append(asyncio.create_task(caller.send(operation, rng.randrange(PROCESSES))))
    return await asyncio.gather(*tasks)


def predict(sent: list[Sent], measured: Measured, limits: Limits) -> Told:
    """The same requests, at the moments they left, to the same replicas."""
    sent = sorted(sent, key=lambda each: each.moment)
    arrivals = ((each.moment - sent[0].moment, measured.of(each.operation)[0]) for each in sent)
    fleet = Fleet(measured, limits, Surroundings(0), None, PROCESSES)
    return fleet.run(arrivals, float("inf"), {number: each.replica for number, each in enumerate(sent)})


def _compared(utilisation: float, sent: list[Sent], measured: Measured, limits: Limits) -> Comparison:
    unloaded = {each.operation: each.unloaded_s for each in measured.pictures}
    waits = [max(0.0, each.took_s - unloaded[each.operation]) for each in sent if each.status in (200, 201)]
    told = predict(sent, measured, limits)
    predicted = told.waits()[1]
    return Comparison(
        utilisation,
        len(sent),
        (float(np.percentile(waits, 50)), float(np.percentile(waits, 99))),
        (float(np.nanpercentile(predicted, 50)), float(np.nanpercentile(predicted, 99))),
        1 - len(waits) / len(sent),
        float(np.isnan(predicted).mean()),
    )


async def compare(
    servers: list[Server], settings: Settings, first_s: float, seconds: float, utilisations: tuple[float, ...]
) -> list[Comparison]:
    """Run each utilisation for so long, and predict it."""
    capacity = settings.max_batch / (first_s * (1 + FURTHER * (settings.max_batch - 1)))
    found = []
    async with Caller(servers) as caller:
        measured = await measure(caller, settings, first_s)
        for number, utilisation in enumerate(utilisations):
            sent = await _open_loop(caller, utilisation * capacity * PROCESSES, seconds, number)
            failed = [each.status for each in sent if each.status not in (200, 201, 503)]
            if failed:
                raise RuntimeError(f"the processes answered {sorted(set(failed))}")
            found.append(_compared(utilisation, sent, measured, Limits.of(settings)))
    return found


def main(settings: Settings, seconds: float, out: Console, first_s: float = FIRST_S) -> bool:
    """Run and print; whether every p99 wait was predicted within 25 %."""
    out.print(
        f"{machine()}; {PROCESSES} processes of {settings.slots} slots, batches of {settings.max_batch}; {seconds:.0f} s each",
        highlight=False,
    )
    with processes(settings, first_s) as servers:
        found = asyncio.run(compare(servers, settings, first_s, seconds, UTILISATIONS))
    table = Table(
        "utilisation", "requests", "p50 s measured", "predicted", "p99 s measured", "predicted", "ratio", "refused measured", "predicted",
        title=f"wait, three processes whose device takes {1000 * first_s:.0f} ms for a picture",
    )  # fmt: skip
    for each in found:
        ratio = f"{each.ratio:.2f}" if each.holds else f"[red]{each.ratio:.2f}[/]"
        (p50, p99), (expected50, expected99) = each.measured, each.predicted
        refused = (f"{100 * share:.1f} %" for share in (each.measured_refused, each.predicted_refused))
        waits = (f"{seconds:.2f}" for seconds in (p50, expected50, p99, expected99))
        table.add_row(f"{each.utilisation:.2f}", f"{each.requests:,}", *waits, ratio, *refused)
    out.print(table)
    return all(each.holds for each in found)
