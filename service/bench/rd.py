"""Rate and distortion: our blob and one render of it with default parameters, against rivals with at least as many bytes."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.bench import pictures as source
from service.bench import report as written
from service.bench import tables
from service.bench.gallery import Gallery
from service.bench.results import OURS, RateReport, Refusal, Row, Sized, about
from service.codec.container import WHOLE_SCALE, scaled
from service.comparison.metrics import SMALLEST_SIDE, Plane, Quality, measure
from service.comparison.rivals import HANDICAP, RIVALS, at_least
from service.errors import BadParameter, SizeUnreachable
from service.imaging.resizing import enlarge, shrink
from service.options import CompressOptions, RenderOptions
from service.pipeline import Compressed, Pipeline, open_pipeline
from service.settings import Settings

REFERENCE_PIXELS = 512 * 512
RENDERS = {
    OURS: RenderOptions("png"),
    f"{OURS}, steps=0": RenderOptions("png", 0),
    f"{OURS}, as WebP": RenderOptions("webp"),
}
"""of one blob; the last is what a browser gets, written with loss once more"""
SIZES = (1600, 2500, 5089, 12000, 24000)
"""bytes of a 512x512 picture; 5,089 is the article's"""
SHOWN_SIZE = 5089
SHRUNK, SHRUNK_RIVAL = "AVIF, shrunk", "AVIF"
SHRUNK_SCALES = (12, 8, 6, 4)
"""sixteenths of the sides"""
HARDLY_LARGER = 1.1
SHOWN_RIVAL = "AVIF"
"""pictures are shown beside this one's, and ranked by sdc's lead over it in SSIMULACRA2"""


@dataclass(frozen=True)
class Terms:
    """What to measure."""

    images: Path
    sizes: tuple[int, ...] = SIZES
    """bytes of a 512x512 picture, others in proportion"""
    crop: int = 512
    """side of centre crops; 0 for whole pictures"""
    limit: int | None = None
    """only the first so many pictures"""
    handicap: bool = False
    """add JPEG and WebP files larger than ours"""
    shrunk: bool = False
    """add AVIF files of smaller pictures, enlarged again"""
    on_white: bool = False
    """lay each picture on white first"""
    shown: int = 10
    """so many of the worst and of the best pictures on the page"""


def in_proportion(size: int, pixels: Plane) -> int:
    """Bytes for this picture, where one of 512x512 has ``size``."""
    height, width = pixels.shape[:2]
    return round(size * int(height) * int(width) / REFERENCE_PIXELS)


async def ours(pipeline: Pipeline, pixels: Plane, max_bytes: int, steps: int | None) -> tuple[int, Plane]:
    """Size of the blob, and the pixels of one render of it."""
    compressed, _ = await _compress(pipeline, source.as_png(pixels), max_bytes)
    shown, _ = await _render(pipeline, compressed, RenderOptions("png", steps))
    return len(compressed.content), shown


async def _compress(pipeline: Pipeline, content: bytes, max_bytes: int) -> tuple[Compressed, float]:
    """And the ms it took from pixels to file: a rival is not asked to open a file either."""
    started = time.perf_counter()
    compressed = await pipeline.compress(content, CompressOptions(max_bytes=max_bytes))
    return compressed, 1000 * (time.perf_counter() - started - compressed.seconds["open"])


async def _render(pipeline: Pipeline, compressed: Compressed, options: RenderOptions) -> tuple[Plane, float]:
    """Pixels as delivered, and the ms from file to pixels: without writing them."""
    started = time.perf_counter()
    rendered = await pipeline.render(compressed.content, options)
    seconds = time.perf_counter() - started - rendered.seconds["write"]
    return np.asarray(Image.open(io.BytesIO(rendered.content))), 1000 * seconds


class Rival:
    """A rival's encoder for one picture: makes the file of a quality once, and knows how long that took."""

    def __init__(self, encode: Callable[[Image.Image, int], bytes], pixels: Plane) -> None:
        self.encode, self.pixels = encode, pixels
        self.made: dict[int, tuple[bytes, float]] = {}

    def _file(self, picture: Image.Image, quality: int) -> bytes:
        if quality not in self.made:
            started = time.perf_counter()
            content = self.encode(picture, quality)
            self.made[quality] = content, 1000 * (time.perf_counter() - started)
        return self.made[quality][0]

    def at_least(self, size: int) -> tuple[int, Plane, float, float]:
        """Bytes of the file that the rule of comparison gives it, what it shows, ms of that one encode, ms of a decode."""
        content, shown = at_least(self._file, self.pixels, size)
        encode_ms = next(ms for made, ms in self.made.values() if made == content)
        started = time.perf_counter()
        Image.open(io.BytesIO(content)).convert("RGB")
        return len(content), shown, encode_ms, 1000 * (time.perf_counter() - started)


def shrunk(pixels: Plane, size: int) -> tuple[int, Plane, float, float]:
    """What the rule of comparison gives a rival who codes the picture smaller and enlarges it again as we do, as ``Rival.at_least``.

    At the size, its own or smaller, that SSIMULACRA2 likes best, of those at which the file is hardly larger than it has to be; at the one
    with the smallest file where none is.
    """
    height, width = pixels.shape[:2]
    found = []
    for scale in (WHOLE_SCALE, *SHRUNK_SCALES):
        taken, shown, encode_ms, decode_ms = Rival(RIVALS[SHRUNK_RIVAL], shrink(pixels, *scaled(width, height, scale))).at_least(size)
        found.append((taken, enlarge(shown, width, height), encode_ms, decode_ms))
    fair = [each for each in found if each[0] <= HARDLY_LARGER * size]
    return max(fair, key=lambda each: measure(pixels, each[1]).ssimulacra2) if fair else min(found, key=lambda each: each[0])


class Bench:
    """Measures one picture after the other."""

    def __init__(self, pipeline: Pipeline, terms: Terms) -> None:
        self.pipeline, self.terms = pipeline, terms
        self.rivals: list[tuple[str, str, float | None]] = [(name, name, None) for name in RIVALS]
        if terms.handicap:
            self.rivals += [(f"{name}, {factor - 1:+.0%}", name, factor) for name, factor in HANDICAP.items()]
        self.codecs = [*RENDERS, *(label for label, _, _ in self.rivals), *([SHRUNK] if terms.shrunk else [])]
        self.shown_size = min(terms.sizes, key=lambda size: abs(size - SHOWN_SIZE))
        self.gallery = Gallery(terms.shown)
        self.rows: list[Row] = []
        self.refused: list[Refusal] = []

    async def picture(self, name: str, pixels: Plane, advance: Callable[[], None]) -> None:
        """Every codec at every size."""
        content = source.as_png(pixels)
        rivals = {rival: Rival(encode, pixels) for rival, encode in RIVALS.items()}
        for size in self.terms.sizes:
            try:
                await self._at(name, pixels, content, size, rivals)
            except SizeUnreachable as error:
                self.refused.append(Refusal(picture=name, max_bytes=size, best_bytes=error.best_bytes))
            advance()

    async def _at(self, name: str, pixels: Plane, content: bytes, size: int, rivals: dict[str, Rival]) -> None:
        allowed = in_proportion(size, pixels)
        compressed, encode_ms = await _compress(self.pipeline, content, allowed)
        mine, planes, rows = len(compressed.content), {"original": pixels}, {}

        async def note(codec: str, taken: int, shown: Plane, encode_ms: float, decode_ms: float) -> None:
            quality = await asyncio.to_thread(measure, pixels, shown)
            rows[codec] = _row(name, codec, size, taken, quality, encode_ms, decode_ms)
            planes[codec] = shown

        for codec, options in RENDERS.items():
            shown, decode_ms = await _render(self.pipeline, compressed, options)
            await note(codec, mine, shown, encode_ms, decode_ms)
        for codec, rival, factor in self.rivals:
            wanted = mine if factor is None else round(allowed * factor)
            await note(codec, *await asyncio.to_thread(rivals[rival].at_least, wanted))
        if self.terms.shrunk:
            await note(SHRUNK, *await asyncio.to_thread(shrunk, pixels, mine))
        self.rows += rows.values()
        if size == self.shown_size:
            lead = rows[OURS].ssimulacra2 - rows[SHOWN_RIVAL].ssimulacra2
            self.gallery.add(name, lead, {codec: planes[codec] for codec in ("original", OURS, SHOWN_RIVAL)}, OURS)


def _row(name: str, codec: str, size: int, taken: int, quality: Quality, encode_ms: float, decode_ms: float) -> Row:
    """Rounded to what is worth writing down: tables are made of these, so that they can be had from the JSON."""
    figures = {metric: round(value, 5) for metric, value in asdict(quality).items()}
    times = {"encode_ms": round(encode_ms, 2), "decode_ms": round(decode_ms, 2)}
    return Row(picture=name, codec=codec, max_bytes=size, bytes=taken, **figures, **times)


def measurable(images: Path, crop: int, limit: int | None, out: Console) -> dict[str, Plane]:
    """The pictures of a folder that the metrics can judge; raises BadParameter where there are none."""
    loaded = source.load(images, crop, limit)
    found = {name: pixels for name, pixels in loaded.items() if min(pixels.shape[:2]) >= SMALLEST_SIDE}
    if not found:
        raise BadParameter(f"the metrics need pictures of at least {SMALLEST_SIDE} pixels a side, and --crop no less")
    if len(found) < len(loaded):
        out.print(f"{len(loaded) - len(found)} left out: under {SMALLEST_SIDE} pixels a side", highlight=False)
    return found


def run(settings: Settings, terms: Terms, out: Console) -> tuple[RateReport, Gallery]:
    """Measure, with a progress bar on stderr; raises the errors of the pipeline."""
    pictures = measurable(terms.images, terms.crop, terms.limit, out)
    if terms.on_white:
        pictures = {name: source.on_white(pixels) for name, pixels in pictures.items()}

    async def measured() -> tuple[RateReport, Gallery]:
        async with open_pipeline(settings) as pipeline:
            bench = Bench(pipeline, terms)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                task = progress.add_task("pictures x sizes", total=len(pictures) * len(terms.sizes))
                for name, pixels in pictures.items():
                    await bench.picture(name, pixels, partial(progress.advance, task))
            report = RateReport(
                about=about(pipeline.engine.description, pipeline.codec.model_identity),
                images=terms.images.resolve().name + (", laid on white" if terms.on_white else ""),
                crop=terms.crop,
                sizes=list(terms.sizes),
                shown_size=bench.shown_size,
                codecs=bench.codecs,
                pictures=[Sized(name=name, width=plane.shape[1], height=plane.shape[0]) for name, plane in pictures.items()],
                rows=bench.rows,
                refused=bench.refused,
            )
            return report, bench.gallery

    return asyncio.run(measured())


def main(settings: Settings, terms: Terms, folder: Path, out: Console) -> None:
    """Run, print the tables, and write the report into the folder."""
    written.prepare(folder)
    report, gallery = run(settings, terms, out)
    cut = f"centre crops {report.crop}x{report.crop}" if report.crop else "whole"
    out.print(f"{len(report.pictures)} pictures of {terms.images}, {cut}", highlight=False, markup=False)
    out.print(f"{report.about.model}; {report.about.machine}", highlight=False, markup=False)
    for size in report.sizes:
        out.print(tables.rates(report, size))
    written.write_rates(folder, report, gallery)
    out.print(f"written: {folder / written.HTML}", highlight=False, markup=False, soft_wrap=True)
