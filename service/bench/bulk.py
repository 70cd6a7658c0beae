"""``sdc bulk`` against its own bare loop, in turn: the same pictures through the same pipeline, from memory and into nothing.

And what a back-catalogue costs at that rate, as a function of prices that are given.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from service.bench.load import mixed_pictures
from service.bench.pictures import machine
from service.bulk.compressor import Compressor, Job
from service.bulk.manifest import ManifestWriter
from service.bulk.rows import Source, Status, to_columns
from service.bulk.run import on_this_machine, record
from service.bulk.sources import listed, understand
from service.errors import SdcError
from service.options import CompressOptions
from service.pipeline import open_pipeline
from service.settings import Settings

ROUNDS = 3
KNOWN_S = 3.0
"""what is known already is gone through again until so long has passed: once would be a fraction of a second"""
AT_ONCE = 3
"""pictures of the bare loop that are at work, for each of a batch, beside those on the processor's threads"""
WRITES_MADE, READS_MADE = 2, 3
"""requests of object stores for a picture that is made: writes of blob and sidecar; reads of the source, of the
blob, which is not there, and of the mark of a deleted one.  Deleting that mark is free"""


@dataclass(frozen=True)
class Prices:
    """In whatever money."""

    core_hour: float
    million_writes: float
    million_reads: float


@dataclass(frozen=True)
class Rates:
    """Pictures a second, of each round."""

    bare: list[float]
    bulk: list[float]
    known: list[float]

    @property
    def ratio(self) -> float:
        """The best of each: what another program took from the machine meanwhile is in neither."""
        return max(self.bulk) / max(self.bare)


def costs(pictures: int, rate: float, cores: int, prices: Prices) -> dict[str, float]:
    """Core-hours of so many pictures at a rate that was measured on so many cores, and the price of each part."""
    hours = pictures * cores / rate / 3600
    return {
        "core-hours": hours,
        "cores": hours * prices.core_hour,
        "writes": pictures * WRITES_MADE * prices.million_writes / 1e6,
        "reads": pictures * READS_MADE * prices.million_reads / 1e6,
    }


async def _bare(settings: Settings, first: list[bytes], contents: list[bytes]) -> float:
    """``first`` has every shape once: what makes the kernels is outside the time taken, on both sides."""
    async with open_pipeline(settings.model_copy(update={"max_queued_pixels": 1 << 62})) as pipeline:
        waiting = iter(contents)

        async def worker() -> None:
            for content in waiting:
                await pipeline.compress(content, CompressOptions())

        for content in first:
            await pipeline.compress(content, CompressOptions())
        started = time.monotonic()
        await asyncio.gather(*(worker() for _ in range(AT_ONCE * settings.max_batch + settings.cpu_workers)))
        return len(contents) / (time.monotonic() - started)


def _bulk(
    settings: Settings, sources: Path, first: list[Path], destination: Path, manifest: Path, status: Status, least_s: float = 0.0
) -> float:
    """Once, and again until ``least_s`` have passed."""
    took, rows = 0.0, 0
    with Compressor(Job(str(sources), destination.as_uri(), CompressOptions(), settings)) as compressor:
        compressor(to_columns(Source, [Source(str(path)) for path in first]))
        while took <= least_s:
            started = time.monotonic()
            with ManifestWriter(manifest) as writer:
                batches = on_this_machine(compressor, listed(understand(str(sources)), []), threading.Event())
                tally = record(batches, writer, lambda row: None)
            took += time.monotonic() - started
            rows += tally.rows
            if tally.count[status] != tally.rows:
                raise SdcError(f"not all were {status}: {tally.count}")
    return rows / took


def measure(settings: Settings, pictures: int, rounds: int = ROUNDS, known_s: float = KNOWN_S) -> Rates:
    """Both in turn, ``rounds`` times, and further runs, ``known_s`` long, over what is stored already."""
    rates = Rates([], [], [])
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            first = _written(folder / "first", _distinct(len(mixed_pictures()), -1))
            paths = _written(folder / "sources", _distinct(pictures, number))
            rates.bare.append(asyncio.run(_bare(settings, [path.read_bytes() for path in first], [path.read_bytes() for path in paths])))
            given = settings, folder / "sources", first, folder / "store", folder / "out.jsonl"
            rates.bulk.append(_bulk(*given, "made"))
            rates.known.append(_bulk(*given, "known", known_s))
    return rates


def _written(folder: Path, contents: Iterator[bytes]) -> list[Path]:
    folder.mkdir()
    paths = []
    for index, content in enumerate(contents):
        paths.append(folder / f"{index:06}.jpg")
        paths[-1].write_bytes(content)
    return paths


def _distinct(count: int, number: int) -> Iterator[bytes]:
    """JPEGs of a few shapes, each with an end of its own, which decoders do not read."""
    for index, (content, _) in zip(range(count), itertools.cycle(mixed_pictures()), strict=False):
        yield content + f"{number}:{index}".encode()


def main(settings: Settings, pictures: int, catalogue: int, prices: Prices, out: Console) -> None:
    """Run and print."""
    cores = len(os.sched_getaffinity(0))
    rates = measure(settings, pictures)
    out.print(f"{machine()}, {cores} cores; {pictures} photographs of the load test, quality 50, {ROUNDS} rounds", highlight=False)
    table = Table("pictures/s", "median", "best", "all rounds", title="a back-catalogue, and its bare loop")
    rows = {
        "bare loop, from memory into nothing": rates.bare,
        "sdc bulk, folder to folder": rates.bulk,
        "again, all known: no device time": rates.known,
    }
    for label, values in rows.items():
        table.add_row(label, f"{np.median(values):.1f}", f"{max(values):.1f}", ", ".join(f"{value:.1f}" for value in values))
    out.print(table)
    out.print(f"sdc bulk does {rates.ratio:.2f} of the bare loop, the best of each", highlight=False)
    reckoned = costs(catalogue, max(rates.bulk), cores, prices)
    out.print(
        f"{catalogue:,} pictures at that rate: {reckoned['core-hours']:,.0f} core-hours, {reckoned['cores']:,.0f} at {prices.core_hour:g} "
        f"an hour; on an object store {WRITES_MADE} writes each, {reckoned['writes']:,.0f} at {prices.million_writes:g} a million, and "
        f"{READS_MADE} reads, {reckoned['reads']:,.0f} at {prices.million_reads:g}",
        highlight=False,
        soft_wrap=True,
    )
