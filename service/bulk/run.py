"""A run: sources through a Compressor, here or on a cluster, into a manifest.  Knows nothing of how it is shown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from service.bulk.compressor import Compressor
from service.bulk.manifest import ManifestWriter
from service.bulk.rows import Columns, Row, Source, Status, rows_of, to_columns
from service.errors import StoreTooSlow, StoreUnavailable

BATCH = 16
"""sources of a call: what is acknowledged at once, and what a kill makes the next run look at again"""
CALLS_AT_ONCE = 4
"""calls that overlap, so that the device has the next batch's pictures when one batch runs out"""
STORE_FAILURES = 100
"""so many rows in turn that failed for a store, and the run ends: so would the rest"""

Item = TypeVar("Item")
Batches = Generator[list[Row], None, None]


@dataclass
class Tally:
    """What a run came to."""

    count: dict[Status, int] = field(default_factory=lambda: {"made": 0, "known": 0, "failed": 0})
    source_bytes: int = 0
    """of what was made or known"""
    bytes: int = 0

    @property
    def rows(self) -> int:
        return sum(self.count.values())

    def add(self, row: Row) -> None:
        """Count a row."""
        self.count[row.status] += 1
        if row.status != "failed":
            self.source_bytes += row.source_bytes or 0
            self.bytes += row.bytes or 0


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size``, and what is left at the end."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def on_this_machine(compressor: Compressor, sources: Iterable[Source], stop: threading.Event) -> Batches:
    """Rows in batches as they are done; takes from ``sources`` no more than what it works on.

    Once ``stop`` is set nothing new is begun and what is in hand is finished.  Closing it gives up what is in hand; what is stored stays.
    """
    with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="bulk") as threads:
        running: set[Future[Columns]] = set()
        try:
            for group in in_groups(sources, BATCH):
                if stop.is_set():
                    break
                running.add(threads.submit(compressor, to_columns(Source, group)))
                if len(running) == CALLS_AT_ONCE:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (list(rows_of(each.result())) for each in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (list(rows_of(each.result())) for each in done)
        finally:
            compressor.cancel()


def record(batches: Batches, manifest: ManifestWriter | None, told: Callable[[Row], None]) -> Tally:
    """Write the rows down and count them.

    Args:
        batches: of rows; closed in the end.
        manifest: is appended to before a row is told.
        told: called with each row.

    Raises StoreUnavailable when a store fails for ``STORE_FAILURES`` pictures in turn, and what ``batches`` raises.
    """
    tally, failures = Tally(), 0
    with closing(batches):
        for rows in batches:
            if manifest is not None:
                manifest.append(rows)
            for row in rows:
                tally.add(row)
                told(row)
                failures = failures + 1 if row.error in (StoreUnavailable.kind, StoreTooSlow.kind) else 0
            if failures >= STORE_FAILURES:
                raise StoreUnavailable(f"a store failed for {failures} pictures in turn: stopped, run again when it answers")
    return tally
