"""Curves of a report, as figures and as SVG.  Knows the results; knows nothing of pages."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from service.bench.bd_rate import bd_rate
from service.bench.results import METRICS, OURS, SIGNS, LoadReport, RateReport, of, summaries
from service.comparison.metrics import NAMES

Points = list[tuple[float, float]]
INK = "#24292f"
PAPER = "#ffffff"
STYLES = {
    OURS: ("#d6453d", "o", "-"),
    "sdc, steps=0": ("#a06a00", "x", ":"),
    "JPEG": ("#7d7d7d", "s", "--"),
    "WebP": ("#2f8f4e", "^", "-."),
    "AVIF": ("#3b7dd8", "D", "--"),
}
"""colour (at least 3:1 on white and on the dark page), marker and dash: no curve is told by its colour alone"""
SMALL = (4.6, 3.5)
"""inches at 72 points: a panel for a column of a page"""
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sdc", "font.family": "sans-serif", "font.size": 10}


def whole_sizes(report: RateReport) -> list[int]:
    """The sizes at which no picture was refused: the points of a curve are all of the same pictures."""
    refused = {each.max_bytes for each in report.refused}
    return [size for size in report.sizes if size not in refused]


def points(report: RateReport) -> dict[str, dict[str, Points]]:
    """Mean bits per pixel that were used and mean quality, by metric and codec."""
    found: dict[str, dict[str, Points]] = {metric: {} for metric in METRICS}
    for size in whole_sizes(report):
        for summary in summaries(report, size):
            for metric, value in zip(METRICS, summary.qualities["mean"], strict=True):
                found[metric].setdefault(summary.codec, []).append((summary.bpp, value))
    return found


def bd_rates(report: RateReport) -> dict[str, dict[str, list[float]]]:
    """sdc's share of bytes more than each rival's for the same quality, of every picture for which that is well defined."""
    sizes = whole_sizes(report)
    signs = dict(zip(METRICS, SIGNS, strict=True))

    def curve(codec: str, picture: str, metric: str) -> Points:
        rows = [row for size in sizes for row in of(report, codec, size) if row.picture == picture]
        return [(row.bytes, float(signs[metric] * getattr(row, metric))) for row in rows]

    rivals = [codec for codec in report.codecs if codec in STYLES and not codec.startswith(OURS)]
    found: dict[str, dict[str, list[float]]] = {}
    for rival in rivals:
        for metric in METRICS:
            each = (bd_rate(curve(OURS, picture.name, metric), curve(rival, picture.name, metric)) for picture in report.pictures)
            found.setdefault(rival, {})[metric] = [share for share in each if share is not None]
    return found


def panel(axes: Axes, metric: str, curves: dict[str, Points]) -> None:
    """One metric over bits per pixel; codecs without a style of their own are left to the tables."""
    for codec, (colour, marker, dash) in STYLES.items():
        if codec in curves:
            rates, values = zip(*sorted(curves[codec]), strict=True)
            # sdc above its twin without the U-Net, whose crosses stick out
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 8 if marker == "x" else 5}
            axes.plot(rates, values, **look, linewidth=1.8, zorder=3 if codec == OURS else 2, label=codec)
    axes.set_xscale("log")
    drawn = [rate for codec in curves for rate, _ in curves[codec]] or [1.0]
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2) if min(drawn) * 0.7 < tick < max(drawn) * 1.4]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    name = NAMES[METRICS.index(metric)]
    better = "higher" if SIGNS[METRICS.index(metric)] > 0 else "lower"
    axes.set_title(f"{'feature distance' if metric == 'feature' else name} ({better} is better)", fontsize=10)
    axes.set_xlabel("bits per pixel, mean of the real files")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _plain(axes)


def figure(report: RateReport, metric: str) -> Figure:
    """One panel."""
    drawing = Figure(figsize=SMALL, layout="constrained")
    panel(drawing.subplots(), metric, points(report)[metric])
    return drawing


def sheet(report: RateReport) -> Figure:
    """All four panels, two by two."""
    drawing = Figure(figsize=(2 * SMALL[0], 2 * SMALL[1]), layout="constrained")
    found = points(report)
    for axes, metric in zip(drawing.subplots(2, 2).flat, METRICS, strict=True):
        panel(axes, metric, found[metric])
    return drawing


def timeline(report: LoadReport, operation: str) -> Figure:
    """What was answered in each second of the overload, and how soon."""
    seconds = report.operations[operation].timeline
    drawing = Figure(figsize=SMALL, layout="constrained")
    above, below = drawing.subplots(2, 1, sharex=True)
    at = [second.at for second in seconds]
    for label, field, style in (("median", "median_ms", STYLES["AVIF"]), ("95th percentile", "p95_ms", STYLES[OURS])):
        values = [np.nan if (value := getattr(second, field)) is None else value for second in seconds]
        above.plot(at, values, color=style[0], linestyle=style[2], linewidth=1.5, label=label)
    above.set_title(f"{operation}: ms until a picture was there", fontsize=10)
    for label, field, style in (("accepted", "accepted", STYLES["WebP"]), ("refused (503)", "refused", STYLES["JPEG"])):
        below.plot(at, [getattr(second, field) for second in seconds], color=style[0], linestyle=style[2], linewidth=1.5, label=label)
    below.set_title("replies in each second", fontsize=10)
    below.set_xlabel("seconds of the overload")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        _plain(axes)
    return drawing


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25, color=INK)
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_color(INK)
    axes.tick_params(colors=INK)
    for spine in axes.spines.values():
        spine.set_edgecolor(INK)


def svg(draw: Callable[[], Figure], key: str, title: str, description: str, inline: bool) -> str:
    """A drawing as an SVG element with a title and a description, its text as text.

    ``inline``: for a page, in the colour of its text and without a ground, its ids begun with ``key`` so that a page can hold several.
    Otherwise a file of its own, on white.
    """
    out = io.StringIO()
    with rc_context(SETTINGS):
        drawing = draw()
        drawing.set_facecolor("none" if inline else PAPER)
        drawing.savefig(out, format="svg", metadata=NO_METADATA)
    element = out.getvalue()
    element = element[element.index("<svg") :]
    named = f'role="img" aria-labelledby="{key}-title {key}-desc"'
    words = f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
    element = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', element)
    element = re.sub(r'(url\(|href=")#', rf"\1#{key}-", element)
    element = re.sub(r"<svg ([^>]*)>", lambda found: f"<svg {found[1]} {named}>{words}", element, count=1)
    return element.replace(INK, "currentColor") if inline else element
