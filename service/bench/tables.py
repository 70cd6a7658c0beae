"""The tables of a report, row by row, for a terminal and a page alike.  Knows the results and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from service.bench.results import LoadReport, Operation, RateReport, Summary, summaries
from service.comparison.metrics import NAMES

STATISTICS = ("mean", "median", "worst")
WINS = "sdc better on"
DIGITS = (2, 4, 1, 4)
"""in the order of the metrics"""


@dataclass(frozen=True)
class Line:
    """One row: a codec's statistic, bytes, and the four metrics; the codec is empty where it is the one above."""

    codec: str
    statistic: str
    bytes: str
    figures: list[str]
    last: bool
    """of its codec"""


def rate_title(report: RateReport, size: int) -> str:
    refused = sum(each.max_bytes == size for each in report.refused)
    return f"{size} B at 512x512, n={len(report.pictures) - refused}" + (f"; {refused} cannot be made so small" if refused else "")


def rate_lines(report: RateReport, size: int) -> list[Line]:
    """Every codec at one size."""
    return [line for summary in summaries(report, size) for line in _lines(summary)]


def _lines(summary: Summary) -> list[Line]:
    found = []
    for statistic in STATISTICS:
        figures = [f"{value:.{digits}f}" for value, digits in zip(summary.qualities[statistic], DIGITS, strict=True)]
        last = statistic == STATISTICS[-1] and summary.wins is None
        codec = summary.codec if statistic == STATISTICS[0] else ""
        found.append(Line(codec, statistic, f"{summary.bytes[statistic]:.0f}", figures, last))
    if summary.wins is not None:
        found.append(Line("", WINS, "", [f"{count}/{summary.n}" for count in summary.wins], True))
    return found


def rates(report: RateReport, size: int) -> Table:
    """One size, for a terminal."""
    made = Table("", "", "bytes", *NAMES, title=rate_title(report, size))
    for line in rate_lines(report, size):
        made.add_row(line.codec, line.statistic, line.bytes, *line.figures, end_section=line.last)
    return made


def mean_lines(report: RateReport) -> list[list[str]]:
    """Every codec at every size: codec, size asked for, and the means of bytes, bits per pixel and the four metrics."""
    found = []
    for size in report.sizes:
        for each in summaries(report, size):
            figures = [f"{value:.{digits}f}" for value, digits in zip(each.qualities["mean"], DIGITS, strict=True)]
            found.append([each.codec, f"{size:,}", f"{each.bytes['mean']:,.0f}", f"{each.bpp:.4f}", *figures])
    return found


def wins_line(report: RateReport, size: int, codec: str) -> str:
    """On how many pictures sdc is better than a rival, for each metric, and of how many."""
    return next((f"{', '.join(map(str, each.wins or []))} of {each.n}" for each in summaries(report, size) if each.codec == codec), "")


def times(report: RateReport) -> list[tuple[str, list[tuple[str, str]]]]:
    """By codec, its encode and decode in ms (medians) at each size; a dash where all were refused."""
    by_size = [{summary.codec: summary for summary in summaries(report, size)} for size in report.sizes]

    def cell(summary: Summary | None) -> tuple[str, str]:
        return ("-", "-") if summary is None else (f"{summary.encode_ms:.0f}", f"{summary.decode_ms:.0f}")

    return [(codec, [cell(found.get(codec)) for found in by_size]) for codec in report.codecs]


def load_lines(report: LoadReport) -> list[tuple[str, list[str]]]:
    """Each with its label and a cell for each operation."""
    first = next(iter(report.operations.values()))
    side = report.alike_side
    cells: dict[str, Callable[[Operation], str]] = {
        "bare loop, pictures/s, batches of " + ", ".join(map(str, first.bare)): lambda of: _listed(of.bare.values()),
        f"the same, all {side}x{side}": lambda of: _listed(of.alike.values()),
        "in turn: bare loop in its best batches": lambda of: _listed(of.alone),
        f"in turn: HTTP, asked for {report.saturation:g} times the bare loop": lambda of: _listed(of.http),
        "saturating HTTP of the bare loop beside it, median of the pairs": lambda of: f"{of.http_share:.2f}",
        "unloaded p95, ms": lambda of: f"{of.unloaded.p95:.0f}" + (f" (n={of.unloaded_count})" if of.unloaded_count else ""),
        f"deadline, {report.deadline_factor:g} times that, ms": lambda of: f"{of.deadline_ms:.0f}",
        "capacity (under 1 % refused) before and after the overload, pictures/s": lambda of: ", ".join(
            f"{each:.2f}" for each in of.capacity
        ),
        "length of a try at a rate in the search for it, s / in deadlines": lambda of: f"{of.probe_seconds:.0f} / {_deadlines(of)}",
        f"overload: offered for {first.seconds:.0f} s, requests/s": lambda of: f"{of.offered:.1f}",
        "overload: goodput, pictures/s": lambda of: f"{of.goodput:.2f}",
        "overload: goodput, megapixels/s": lambda of: _known(of.goodput_megapixels),
        f"overload: mean size of the accepted, MP; of all {report.megapixels:.2f}": lambda of: _known(of.accepted_megapixels),
        "overload: goodput of the mean of the two": lambda of: f"{of.goodput / np.mean(of.capacity):.2f}" if all(of.capacity) else "-",
        "overload: accepted, median / p95 / p99 ms": lambda of: f"{of.latency.median:.0f} / {of.latency.p95:.0f} / {of.latency.p99:.0f}",
        "overload: p99 of the deadline": lambda of: f"{of.latency.p99 / of.deadline_ms:.2f}" if of.deadline_ms else "-",
        "overload: refused 503 / p99 ms": lambda of: f"{of.refused} / {of.refusal.p99:.0f}",
        "overload: 503 without an integer Retry-After": lambda of: f"{of.lawless}",
        "overload: anything else / not sent in time": lambda of: f"{of.failed} / {of.dropped}",
        "overload: memory grew by, MiB": lambda of: f"{of.grown_mib:.0f}",
        "gauges afterwards": lambda of: gauges(of.gauges),
    }
    return [(label, [cell(operation) for operation in report.operations.values()]) for label, cell in cells.items()]


def hung_up(report: LoadReport) -> str:
    """Clients that left, in a sentence."""
    found = report.hung_up
    return (
        f"{found.clients} clients hung up in {found.seconds:.0f} s: {found.inside} left inside, {found.computed} of them had reached "
        f"the device; beside them {found.served} stayed and were served, {found.refused} refused, {found.failed} failed; "
        f"{gauges(found.gauges)}"
    )


def idle(report: LoadReport) -> str:
    return f"idle: {100 * report.idle_share:.2f} % of one processor over {report.idle_seconds:.0f} s"


def load(report: LoadReport) -> Table:
    """For a terminal."""
    made = Table("", *report.operations, title="the service under load, and its bare loop")
    for label, cells in load_lines(report):
        made.add_row(label, *cells)
    return made


def _deadlines(of: Operation) -> str:
    return f"{1000 * of.probe_seconds / of.deadline_ms:.0f}" if of.deadline_ms else "-"


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def gauges(values: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('sdc_')} {value:g}" for name, value in values.items())
