"""Results written down: JSON for programs, one page of HTML that needs nothing else for people, curves as SVG for documents.

Everything on a page but its pictures comes from the JSON beside it.  Must not measure anything.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from service.bench import curves, gallery, tables
from service.bench.bd_rate import FEWEST_POINTS, SMALLEST_OVERLAP
from service.bench.gallery import Gallery
from service.bench.results import METRICS, OURS, About, LoadReport, RateReport, of
from service.comparison.metrics import NAMES
from service.errors import BadParameter

JSON, HTML, SVG, MARKDOWN = "report.json", "report.html", "curves.svg", "README.md"


def prepare(folder: Path) -> None:
    """Make the folder; raises BadParameter where nothing can be written into it: before minutes of measuring, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadParameter(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise BadParameter(f"cannot write into {folder}")


def write_rates(folder: Path, report: RateReport, pictures: Gallery) -> None:
    """``report.json``, ``report.html``, ``curves.svg`` and ``README.md``."""
    (folder / MARKDOWN).write_text(rates_markdown(report), encoding="utf-8")
    _write_json(folder, report)
    (folder / HTML).write_text(rates_page(report, pictures), encoding="utf-8")
    (folder / SVG).write_text(curves.svg(lambda: curves.sheet(report), "curves", *_told(report), inline=False), encoding="utf-8")


def write_load(folder: Path, report: LoadReport) -> None:
    """``report.json``, ``report.html`` and ``README.md``."""
    (folder / MARKDOWN).write_text(load_markdown(report), encoding="utf-8")
    _write_json(folder, report)
    (folder / HTML).write_text(load_page(report), encoding="utf-8")


def _write_json(folder: Path, report: BaseModel) -> None:
    """One row a line: small, and a change of one is seen in a diff."""
    (folder / JSON).write_text(report.model_dump_json().replace('},{"', '},\n{"') + "\n", encoding="utf-8")


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def rates_page(report: RateReport, pictures: Gallery) -> str:
    """The page of ``sdc bench rd``."""
    panels = {metric: _panel(report, metric) for metric in METRICS}
    figures = {(codec, row.picture): row for codec in report.codecs for row in of(report, codec, report.shown_size)}
    return _templates().get_template("report_rd.html").render(
        report=report, names=NAMES, ours=OURS, panels=panels,
        drawn=curves.whole_sizes(report),
        means=tables.mean_lines(report),
        tables=[(tables.rate_title(report, size), tables.rate_lines(report, size)) for size in report.sizes],
        times=tables.times(report), bd_rates=_bd_rates(report), fewest=FEWEST_POINTS, overlap=SMALLEST_OVERLAP,
        worst=pictures.worst, best=pictures.best, figures=figures, side=gallery.SIDE, quality=gallery.QUALITY,
    )  # fmt: skip


def _told(report: RateReport) -> tuple[str, str]:
    """Title and description of the curves."""
    title = f"Rate and distortion of {', '.join(codec for codec in report.codecs if codec in curves.STYLES)}"
    return title, f"Means over {len(report.pictures)} pictures of {report.images} at {_sizes(report)} B of a 512x512 picture."


def _sizes(report: RateReport) -> str:
    return ", ".join(f"{size:,}" for size in curves.whole_sizes(report))


def _panel(report: RateReport, metric: str) -> Markup:
    """One metric's curves; what they say in numbers is their description."""
    points = curves.points(report)[metric]
    said = "; ".join(f"{codec}: " + ", ".join(f"{value:.4g} at {rate:.3f}" for rate, value in drawn) for codec, drawn in points.items())
    title = f"{NAMES[METRICS.index(metric)]} over bits per pixel"
    # Made by matplotlib from numbers and this module's words: nothing in it comes from a file name.
    return Markup(curves.svg(lambda: curves.figure(report, metric), metric.replace("_", "-"), title, said, inline=True))


def _bd_rates(report: RateReport) -> list[tuple[str, list[tuple[str, int]]]]:
    """By rival, for each metric: the median in percent, or a dash, and of how many pictures."""

    def cell(shares: list[float]) -> tuple[str, int]:
        return (f"{100 * float(np.median(shares)):+.1f} %" if 2 * len(shares) > len(report.pictures) else "-"), len(shares)

    return [(rival, [cell(found[metric]) for metric in METRICS]) for rival, found in curves.bd_rates(report).items()]


def load_page(report: LoadReport) -> str:
    """The page of ``sdc bench load``."""
    panels = {operation: _timeline(report, operation) for operation, found in report.operations.items() if found.timeline}
    return _templates().get_template("report_load.html").render(
        report=report, lines=tables.load_lines(report), hung_up=tables.hung_up(report), idle=tables.idle(report), panels=panels,
    )  # fmt: skip


def _timeline(report: LoadReport, operation: str) -> Markup:
    found = report.operations[operation]
    times = f"median {found.latency.median:.0f} ms, p99 {found.latency.p99:.0f} ms"
    said = f"{found.accepted} accepted and {found.refused} refused in {found.seconds:.0f} s; {times}."
    title = f"{operation}: replies and their times in each second of the overload"
    return Markup(curves.svg(lambda: curves.timeline(report, operation), operation, title, said, inline=True))


def rates_markdown(report: RateReport) -> str:
    """What a forge shows of the folder: curves, means, BD-rate."""
    cut = f"centre crops {report.crop}x{report.crop}" if report.crop else "whole"
    head = ["codec", "asked for, B", "bytes", "bits/pixel", *NAMES]
    wins = [
        [rival, f"{size:,}", tables.wins_line(report, size, rival)]
        for size in report.sizes for rival in report.codecs[1:] if of(report, rival, size)
    ]  # fmt: skip
    rates = [[rival, *(f"{share} ({count})" for share, count in cells)] for rival, cells in _bd_rates(report)]
    return "\n".join(
        [
            "# sdc beside JPEG, WebP and AVIF",
            "",
            f"{len(report.pictures)} pictures of {_code(report.images)}, {cut}. {_made(report.about)}",
            f"How it was measured, medians, the worst and the best pictures: [{HTML}]({HTML}). Every figure: [{JSON}]({JSON}).",
            "",
            f"![Four panels, each with a curve for each codec over bits per pixel; their points are the table below]({SVG})",
            "",
            "Means over the pictures:",
            "",
            *_rows(head, tables.mean_lines(report)),
            "",
            f"Pictures on which sdc is better ({', '.join(NAMES)}):",
            "",
            *_rows(["than", "at, B", "on"], wins),
            "",
            "BD-rate, how many more bytes sdc takes for the same quality, median (over how many pictures it is well defined for):",
            "",
            *_rows(["against", *NAMES], rates),
            "",
        ]
    )


def load_markdown(report: LoadReport) -> str:
    """What a forge shows of the folder: the table."""
    return "\n".join(
        [
            "# sdc under load",
            "",
            f"{report.pictures}. {_made(report.about)} Percentiles, batches, stages, second by second: [{HTML}]({HTML}).",
            f"Every figure: [{JSON}]({JSON}).",
            "",
            *_rows(["figure", *report.operations], [[label, *cells] for label, cells in tables.load_lines(report)]),
            "",
            f"{tables.hung_up(report)}.",
            "",
            f"{tables.idle(report)}.",
            "",
        ]
    )


def _made(about: About) -> str:
    return f"sdc {about.sdc}, {about.model}; {about.machine}; {about.made}."


def _code(name: str) -> str:
    """A name as code, whatever it holds."""
    return f"`{name.replace('`', chr(39))}`"


def _rows(head: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]
