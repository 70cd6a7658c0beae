"""Where a picture is better coded smaller: the same bytes at its own size, at three quarters and at half of its sides.

What ``scaling`` of a model's ``sdc.json`` is set by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from service.bench import pictures as source
from service.bench.pictures import Plane
from service.bench.rd import in_proportion, measurable
from service.bench.results import SIGNS
from service.codec.container import WHOLE_SCALE, scaled
from service.comparison.metrics import NAMES, measure
from service.errors import SizeUnreachable
from service.imaging.resizing import enlarge, shrink
from service.options import CompressOptions
from service.pipeline import Pipeline, open_pipeline
from service.settings import Settings

SIZES = (400, 800, 1500, 2200, 3000, 4300)
"""bytes of a 512x512 picture"""
SMALLER = {12: "3/4", 8: "1/2"}
"""sixteenths of the sides, and what they are called"""
STEPS_TOGETHER = 10
"""step indices in a row of the table"""
DIGITS = (2, 4, 1, 3)


@dataclass(frozen=True)
class Trial:
    """One picture at one size in bytes."""

    step_index: int
    """at its own size"""
    gained: dict[int, tuple[float, ...]]
    """by scale: the four metrics, less those at its own size"""


async def trial(pipeline: Pipeline, pixels: Plane, max_bytes: int) -> Trial | None:
    """None where the picture cannot be made so small at its own size."""

    async def at(scale: int) -> tuple[int, tuple[float, ...]]:
        height, width = pixels.shape[:2]
        small = shrink(pixels, *scaled(width, height, scale))
        blob = (await pipeline.compress(source.as_png(small), CompressOptions(max_bytes=max_bytes))).blob
        shown = enlarge((await pipeline.restore(blob, pipeline.engine.manifest.default_steps)).rgb, width, height)
        return blob.step_index, astuple(await asyncio.to_thread(measure, pixels, shown))

    try:
        step_index, own = await at(WHOLE_SCALE)
        others = {scale: (await at(scale))[1] for scale in SMALLER}
    except SizeUnreachable:
        return None
    return Trial(step_index, {scale: tuple(np.subtract(figures, own).tolist()) for scale, figures in others.items()})


def table(trials: Sequence[Trial], title: str) -> Table:
    """Mean gains by the step at a picture's own size; in brackets of how many pictures the figure is the better one."""
    made = Table("step index", "n", "sides", *NAMES, title=title)
    for low in sorted({each.step_index // STEPS_TOGETHER * STEPS_TOGETHER for each in trials}):
        found = [each for each in trials if low <= each.step_index < low + STEPS_TOGETHER]
        heads = [(f"{low}-{low + STEPS_TOGETHER - 1}", str(len(found)))] + [("", "")] * (len(SMALLER) - 1)
        for head, (scale, name) in zip(heads, SMALLER.items(), strict=True):
            gains = np.array([each.gained[scale] for each in found])
            better = (gains * SIGNS > 0).sum(0)
            cells = [f"{mean:+.{digits}f} ({count})" for mean, digits, count in zip(gains.mean(0), DIGITS, better, strict=True)]
            made.add_row(*head, name, *cells)
    return made


def main(settings: Settings, images: Path, sizes: Sequence[int], crop: int, limit: int | None, out: Console) -> None:
    """Print the table; raises BadParameter where no picture is large enough."""
    pictures = measurable(images, crop, limit, out)

    async def run() -> list[Trial | None]:
        async with open_pipeline(settings, warm=False) as pipeline:
            rule = pipeline.codec.manifest.scaling
            pipeline.codec.manifest = pipeline.codec.manifest.model_copy(update={"scaling": None})
            found: list[Trial | None] = []
            for pixels in track(pictures.values(), "pictures", console=Console(stderr=True), transient=True):
                found += [await trial(pipeline, pixels, in_proportion(size, pixels)) for size in sizes]
            out.print(f"{len(pictures)} pictures of {images}; {source.machine()}", highlight=False, markup=False)
            out.print(f"sdc.json of {pipeline.engine.manifest.full_name}: scaling {rule}", highlight=False, markup=False)
            return found

    found = asyncio.run(run())
    trials = [each for each in found if each is not None]
    out.print(table(trials, "gained by coding smaller, at the same bytes (better on so many)"))
    if len(trials) < len(found):
        out.print(f"{len(found) - len(trials)} of {len(found)} cannot be made so small at their own size", highlight=False)
