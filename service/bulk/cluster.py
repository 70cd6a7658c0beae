"""The same work on a Ray cluster, by Ray Data: Compressors are its actors, names go out and rows come back, never a picture.

Ray runs again what a lost worker had in hand.  Objects are written once whoever writes them, and rows are those of the final dataset, so
nothing is lost or there twice; that is checked, and not only believed.  Needs the extra ``ray``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from service.bulk.compressor import Compressor, Job
from service.bulk.rows import Source, rows_of, to_columns
from service.bulk.run import Batches, in_groups
from service.errors import BadParameter, SdcError

BATCH = 64
"""sources of a task: what is done again when a worker is lost"""
WAVE = 100_000
"""sources that the driver holds at once, and that one dataset is made of"""


@dataclass(frozen=True)
class Workers:
    """Who does the work.  Each is one Compressor, with one device."""

    count: int | None = None
    """at most; None: as many as the cluster has room for when the run begins"""
    cpus: float = 2.0
    """of each"""
    gpus: float | None = None
    """of each; None: one where the cluster has any"""


def connect(address: str | None) -> None:
    """Join a cluster, by default that of RAY_ADDRESS or of this machine; where there is none, start one here that ends with this process.

    Raises BadParameter where nobody answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, include_dashboard=False, logging_level="warning", ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadParameter(f"no Ray cluster at {address or 'RAY_ADDRESS'}: {str(error).splitlines()[0]}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # there is one already


def on_cluster(
    job: Job,
    sources: Iterable[Source],
    workers: Workers,
    stop: threading.Event,
    compressor: type[Compressor] = Compressor,
    wave: int = WAVE,
) -> Batches:
    """Rows in batches as they are done, by the cluster that ``connect`` joined.

    Args:
        job: must hold on every node: the model's folder, the stores' addresses and, in the environment, their credentials.
        sources: taken a wave at a time.
        workers: who works.
        stop: once it is set nothing more is waited for.
        compressor: what they run.
        wave: sources of one dataset.

    Raises SdcError when Ray gives up, or its rows are not those that were asked for.
    """
    pool, resources = _pool(workers)
    for group in in_groups(sources, wave):
        columns = to_columns(Source, group)
        items = [dict(zip(("number", *columns), values, strict=True)) for values in zip(range(len(group)), *columns.values(), strict=True)]
        asked = ray.data.from_items(items, override_num_blocks=-(-len(items) // BATCH))
        answered = asked.map_batches(compressor, fn_constructor_args=(job,), batch_size=BATCH, compute=pool, **resources)
        yield from _once_each(answered, len(items), stop)
        if stop.is_set():
            return


def _once_each(answered: ray.data.Dataset, count: int, stop: threading.Event) -> Batches:
    """The dataset's rows, each of ``count`` numbers once."""
    missing = bytearray(b"\1") * count
    try:
        for table in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            columns: dict[str, list[Any]] = table.to_pydict()
            for number in columns["number"]:
                if not missing[number]:
                    raise SdcError("Ray gave a row twice: run again, what is stored stays")
                missing[number] = 0
            yield list(rows_of(columns))
            if stop.is_set():
                return
    except RayError as error:
        raise SdcError(f"Ray gave up: {str(error).strip().splitlines()[-1]}") from error
    if any(missing):
        raise SdcError(f"Ray lost {sum(missing)} rows: run again, what is stored stays")


def _pool(workers: Workers) -> tuple[ray.data.ActorPoolStrategy, dict[str, float]]:
    """How many, and what each of them takes."""
    there = ray.cluster_resources()
    gpus = float(there.get("GPU", 0) > 0) if workers.gpus is None else workers.gpus
    most = min(there.get("CPU", 0) / workers.cpus, there.get("GPU", 0) / gpus if gpus else float("inf"))
    count = int(most) if workers.count is None else workers.count
    if count < 1:
        raise BadParameter(f"the cluster has {there.get('CPU', 0):g} processors and {there.get('GPU', 0):g} GPUs: too few for one worker")
    return ray.data.ActorPoolStrategy(min_size=1, max_size=count), {"num_cpus": workers.cpus, "num_gpus": gpus}
