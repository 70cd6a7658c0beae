"""A simulated day in words and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table

from service.bench.fleet.simulation import Told
from service.bench.fleet.traffic import DAY_S, Day

SLICE_S = 300.0
"""of the picture"""
SALE = "the sale"
Series = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slices:
    """A day in slices of equal length; p50 and p99 in seconds, refused as a share."""

    hours: Series
    arrived: Series
    """a second"""
    p50: Series
    p99: Series
    refused: Series
    wished: Series
    ready: Series


def sliced(told: Told, begins: float, ends: float, slice_s: float) -> Slices:
    arrived, waits = told.waits()
    edges = np.arange(begins, ends + slice_s / 2, slice_s)
    cuts = np.searchsorted(arrived, edges)
    parts = [waits[first:last] for first, last in pairwise(cuts)]
    moments, wished, ready = (np.array(column, float) for column in zip(*told.replicas, strict=True))
    last = np.maximum(0, np.searchsorted(moments, edges[1:], side="right") - 1)
    return Slices(
        hours=edges[:-1] / 3600,
        arrived=np.array([len(part) for part in parts]) / slice_s,
        p50=np.array([_percentile(part, 50) for part in parts]),
        p99=np.array([_percentile(part, 99) for part in parts]),
        refused=np.array([float(np.isnan(part).mean()) if len(part) else 0.0 for part in parts]),
        wished=wished[last],
        ready=ready[last],
    )


def _percentile(waits: Series, share: float) -> float:
    served = waits[~np.isnan(waits)]
    return float(np.percentile(served, share)) if len(served) else float("nan")


def hours(told: Told, day: Day, begins: float, ends: float) -> Table:
    """A row for each hour, and one for the sale."""
    table = Table("hour", "requests/s", "replicas", "p50 wait s", "p99 wait s", "refused")
    ranges = [(f"{start / 3600:02.0f}", start, min(start + 3600, ends)) for start in np.arange(begins, ends, 3600)]
    if day.sale:
        ranges.append((SALE, day.sale.begins_s, min(ends, day.sale.ends_s)))
    for label, start, end in ranges:
        one = sliced(told, start, end, end - start)
        ready = [count for moment, _, count in told.replicas if start <= moment < end]
        if label == SALE:
            table.add_section()
        table.add_row(
            label, f"{one.arrived[0]:.1f}", f"{min(ready)} to {max(ready)}", f"{one.p50[0]:.2f}", f"{one.p99[0]:.2f}",
            f"{100 * one.refused[0]:.2f} %",
        )  # fmt: skip
    return table


def draw(days: dict[str, Told], path: Path, title: str) -> None:
    """Requests, replicas, wait and refusals over the day, a line for each of ``days``; SVG or PNG by the suffix."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "sdc"  # the same picture from the same day
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, sharex=True, figsize=(10, 9), constrained_layout=True)
    styles = [{"color": "#0b5394"}, {"color": "#cc4125", "linestyle": "--"}, {"color": "#38761d", "linestyle": ":"}]
    for number, (label, told) in enumerate(days.items()):
        one, style = sliced(told, 0.0, DAY_S, SLICE_S), styles[number % len(styles)]
        if number == 0:
            axes[0].plot(one.hours, one.arrived, color="#444444", linewidth=1)
        axes[1].step(one.hours, one.ready, where="post", label=label, **style)
        axes[2].plot(one.hours, one.p99, label=f"p99, {label}", **style)
        axes[2].plot(one.hours, one.p50, label=f"p50, {label}", linewidth=0.8, alpha=0.5, **style)
        axes[3].plot(one.hours, 100 * one.refused, label=label, **style)
    for axis, name in zip(axes, ("requests/s", "replicas ready", "wait, s", "refused, %"), strict=True):
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[3].set_ylim(top=max(1.0, axes[3].get_ylim()[1]))  # under 1 % is calm, and shall look it
    for axis in axes[1:3]:
        axis.legend(loc="upper left", fontsize="small")
    axes[0].set_title(title, fontsize="medium")
    axes[-1].set_xlim(0, 24)
    axes[-1].set_xticks(range(0, 25, 2))
    axes[-1].set_xlabel("hour of the day, slices of five minutes")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
