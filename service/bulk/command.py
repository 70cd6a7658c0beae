"""``sdc bulk``: puts a run together and shows it.  Knows nothing of how pictures are compressed."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.bulk.compressor import Compressor, Job
from service.bulk.manifest import ManifestWriter
from service.bulk.rows import Row, Source
from service.bulk.run import Batches, Tally, on_this_machine, record
from service.bulk.sources import Origin, listed, refuse_overlap
from service.errors import BadParameter
from service.options import CompressOptions
from service.settings import Settings
from service.storage.keeping import check_tag
from service.storage.objects import address_of
from service.telemetry import logs

COUNTED_AHEAD = 100_000
"""so many sources are listed before the work begins: where that is all of them the bar knows its end"""
SHOWN_FAILURES = 10
SOME_FAILED, INTERRUPTED = 3, 130
"""exit codes of a run that came to its end with pictures that failed, and of what a signal ended; 1 is of one that could not go on"""


@dataclass(frozen=True)
class Cluster:
    """The options of ``--ray``; see ``service.bulk.cluster``."""

    address: str | None
    workers: int | None
    cpus: float


@dataclass(frozen=True)
class Asked:
    """The command line."""

    origin: Origin
    destination: str
    options: CompressOptions
    tag: str | None
    revive: bool
    manifest: Path | None
    match: list[str]
    column: str
    cluster: Cluster | None
    """None: on this machine"""


def main(settings: Settings, asked: Asked, err: Console) -> int:
    """Run and show; returns the exit code: 0, ``SOME_FAILED``, or 130 after an interrupt that left sources.

    Raises what stops it, an SdcError.
    """
    refuse_overlap(asked.origin, asked.destination, asked.manifest)
    if asked.tag is not None:
        check_tag(asked.tag)
    logs.configure(settings.log_level)
    # keys are of the service: they have no business on other machines
    plain = settings.model_copy(update={"admin_key": None, "api_keys": {}, "signing_keys": {}})
    job = Job(asked.origin.base, address_of(asked.destination), asked.options, plain, asked.tag, asked.revive)
    sources, total = _counted(listed(asked.origin, asked.match, asked.column))
    with ExitStack() as stack:
        writer = None if asked.manifest is None else stack.enter_context(ManifestWriter(asked.manifest))
        if writer is not None and writer.rescued:
            err.print(f"the rows of a run that was killed are in {writer.path}, until this one ends", highlight=False, markup=False)
        stop = threading.Event()
        batches = _batches(job, sources, asked.cluster, stop, stack)
        progress = stack.enter_context(_progress(err))
        task = progress.add_task("", total=total, counts="", rate="")
        stack.enter_context(_interruptible(stop, progress))
        tally = record(batches, writer, _Shown(progress, task).row)
    stopped = stop.is_set() and tally.rows != total  # or all was in hand already
    _sum_up(tally, asked.manifest, stopped, err)
    return INTERRUPTED if stopped else SOME_FAILED if tally.count["failed"] else 0


def _counted(sources: Iterator[Source]) -> tuple[Iterator[Source], int | None]:
    """The sources, and how many they are where that is soon known."""
    first = list(itertools.islice(sources, COUNTED_AHEAD))
    return itertools.chain(first, sources), len(first) if len(first) < COUNTED_AHEAD else None


def _batches(job: Job, sources: Iterator[Source], cluster: Cluster | None, stop: threading.Event, stack: ExitStack) -> Batches:
    if cluster is None:
        return on_this_machine(stack.enter_context(Compressor(job)), sources, stop)
    try:
        from service.bulk import cluster as on_ray
    except ModuleNotFoundError as error:
        raise BadParameter(f"{error.name} is missing: --ray needs pip install 'sdc[ray]'") from error
    on_ray.connect(cluster.address)
    workers = on_ray.Workers(cluster.workers, cluster.cpus, 0.0 if job.settings.device == "cpu" else None)
    return on_ray.on_cluster(job, sources, workers, stop)


@contextmanager
def _interruptible(stop: threading.Event, progress: Progress) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets ``stop``, the second interrupts as ever."""

    def told(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        progress.console.print("stopping: what is in hand is finished, once more to leave it", highlight=False)

    before = {number: signal.signal(number, told) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress(err: Console) -> Progress:
    columns = (TextColumn("{task.fields[counts]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err, transient=True)


class _Shown:
    """Shows each row on the bar, and the first failures in words."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task, self._tally = progress, task, Tally()

    def row(self, row: Row) -> None:
        """Show one more."""
        self._tally.add(row)
        count = self._tally.count
        if row.status == "failed" and count["failed"] <= SHOWN_FAILURES:
            words = f"[red]error[/]: {escape(row.source)}: {escape(row.detail or '')}"
            self._progress.console.print(words, highlight=False, soft_wrap=True)
        speed = self._progress.tasks[0].finished_speed or self._progress.tasks[0].speed
        self._progress.update(self._task, advance=1, counts=_counts(self._tally), rate="" if speed is None else f"{speed:.1f}/s")


def _counts(tally: Tally) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in tally.count.items() if count)


def _sum_up(tally: Tally, manifest: Path | None, stopped: bool, err: Console) -> None:
    smaller = f"; {tally.source_bytes:,} -> {tally.bytes:,} bytes" if tally.bytes else ""
    err.print(f"{_counts(tally) or 'there was nothing to do'}{smaller}", highlight=False, markup=False, soft_wrap=True)
    if manifest is not None:
        err.print(f"{tally.rows:,} rows are in {manifest}", highlight=False, markup=False, soft_wrap=True)
    elif tally.count["failed"] > SHOWN_FAILURES:
        err.print(f"the first {SHOWN_FAILURES} failures are told; --manifest has a row for each", highlight=False)
    if stopped:
        err.print("stopped before the end: the same command goes on", highlight=False)
