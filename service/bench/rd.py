"""Rate and distortion: our blob and one render of it with default parameters, against rivals with at least as many bytes."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from service.bench import pictures as source
from service.comparison.metrics import HIGHER_IS_BETTER, NAMES, Plane, Quality, as_array, measure
from service.comparison.rivals import HANDICAP, RIVALS, at_least
from service.pipeline import CompressOptions, Pipeline, RenderOptions, open_pipeline
from service.settings import Settings

REFERENCE_PIXELS = 512 * 512


async def ours(pipeline: Pipeline, pixels: Plane, max_bytes: int, steps: int | None) -> tuple[int, Plane]:
    """Size of the blob, and the pixels of one render of it."""
    compressed = await pipeline.compress(source.as_png(pixels), CompressOptions(max_bytes=max_bytes))
    rendered = await pipeline.render(compressed.content, RenderOptions("png", steps))
    return len(compressed.content), np.asarray(Image.open(io.BytesIO(rendered.content)))


def main(
    settings: Settings,
    images: Path,
    budgets: list[int],
    crop: int,
    limit: int | None,
    results: Path | None,
    out: Console,
    handicap: bool = False,
) -> None:
    """Run and print; raises the errors of the pipeline.  ``handicap`` adds JPEG and WebP files larger than ours."""
    pictures = source.load(images, crop, limit)
    everything: dict[str, object] = {}

    async def run() -> None:
        async with open_pipeline(settings) as pipeline:
            out.print(f"{len(pictures)} pictures of {images}, {f'centre crops {crop}x{crop}' if crop else 'whole'}", highlight=False)
            out.print(f"{pipeline.engine.description}; {source.machine()}", highlight=False)
            for budget in budgets:
                everything[str(budget)] = await _at(pipeline, pictures, budget, out, handicap)

    asyncio.run(run())
    if results:
        results.write_text(json.dumps(everything, indent=1) + "\n")


async def _at(pipeline: Pipeline, pictures: dict[str, Plane], budget: int, out: Console, handicap: bool) -> dict[str, object]:
    """One size: ``budget`` bytes of a 512x512 picture, others in proportion."""
    sizes: dict[str, list[int]] = {}
    qualities: dict[str, list[Quality]] = {}

    def note(name: str, size: int, shown: Plane, pixels: Plane) -> None:
        sizes.setdefault(name, []).append(size)
        qualities.setdefault(name, []).append(measure(pixels, shown))

    for pixels in track(pictures.values(), f"{budget} B", console=Console(stderr=True), transient=True):
        allowed = round(budget * pixels.shape[0] * pixels.shape[1] / REFERENCE_PIXELS)
        for label, steps in (("sdc", None), ("sdc, steps=0", 0)):
            size, shown = await ours(pipeline, pixels, allowed, steps)
            note(label, size, shown, pixels)
        for name, encode in RIVALS.items():
            content, shown = await asyncio.to_thread(at_least, encode, pixels, sizes["sdc"][-1])
            note(name, len(content), shown, pixels)
        for name, factor in HANDICAP.items() if handicap else ():
            content, shown = await asyncio.to_thread(at_least, RIVALS[name], pixels, round(allowed * factor))
            note(f"{name}, {factor - 1:+.0%}", len(content), shown, pixels)

    table = Table("", "", "bytes", *NAMES, title=f"{budget} B at 512x512, n={len(pictures)}")
    mine = as_array(qualities["sdc"])
    signs = np.where(HIGHER_IS_BETTER, 1, -1)
    for name, listed in qualities.items():
        values = as_array(listed)
        worst = np.where(HIGHER_IS_BETTER, values.min(0), values.max(0))
        table.add_row(name, "mean", f"{np.mean(sizes[name]):.0f}", *_cells(values.mean(0)))
        table.add_row("", "median", f"{np.median(sizes[name]):.0f}", *_cells(np.median(values, 0)))
        table.add_row("", "worst", f"{np.max(sizes[name])}", *_cells(worst), end_section=name == "sdc")
        if name != "sdc":
            wins = ((mine - values) * signs > 0).sum(0)
            table.add_row("", "sdc better on", "", *(f"{count}/{len(values)}" for count in wins), end_section=True)
    out.print(table)
    return {
        name: [{"picture": key, "bytes": size, **asdict(quality)} for key, size, quality in zip(pictures, sizes[name], listed, strict=True)]
        for name, listed in qualities.items()
    }


def _cells(figures: npt.NDArray[np.float64]) -> list[str]:
    return [f"{figure:.{digits}f}" for figure, digits in zip(figures, (2, 4, 1, 4), strict=True)]
