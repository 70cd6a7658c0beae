"""How long one picture takes, alone on the machine, against one AVIF encode of the same size at Pillow's default speed."""

from __future__ import annotations

import asyncio
import io
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.bench import pictures as source
from service.comparison.metrics import Plane
from service.options import CompressOptions, RenderOptions
from service.pipeline import Pipeline, open_pipeline
from service.settings import Settings

MAX_BYTES = 5089
ROUNDS = 3
REFERENCE = "AVIF encode, default speed, no search"


def _avif_quality(picture: Image.Image) -> int:
    """Lowest quality that gives at least ``MAX_BYTES`` at Pillow's default speed; found outside the time taken."""
    return bisect_left(range(100), MAX_BYTES, key=lambda quality: len(_avif(picture, quality)))


def _avif(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "AVIF", quality=quality)
    return out.getvalue()


def main(settings: Settings, images: Path, every: int, out: Console) -> None:
    """Run and print: median and 90th percentile in ms, over pictures (the first by name, and each ``every``-th from there) and rounds."""
    pictures = list(source.load(images, 512, None).values())[::every]
    rows: dict[str, list[float]] = {}

    async def run() -> None:
        seen = set()
        for dtype in (settings.dtype, "float32"):
            async with open_pipeline(settings.model_copy(update={"dtype": dtype})) as pipeline:
                if pipeline.engine.dtype in seen:
                    continue
                seen.add(pipeline.engine.dtype)
                out.print(f"{pipeline.engine.description}; {source.machine()}", highlight=False)
                for pixels in pictures * ROUNDS:
                    await _one(pipeline, pixels, rows)

    asyncio.run(run())
    table = Table("", "median ms", "p90 ms", "of one AVIF encode")
    for label, values in rows.items():
        middle, reference = float(np.median(values)), float(np.median(rows[f"{REFERENCE}, beside {label.split()[-1]}"]))
        table.add_row(label, f"{middle:.1f}", f"{np.percentile(values, 90):.1f}", f"{middle / reference:.2f}")
    out.print(f"{len(pictures)} centre crops 512x512 of {images}, {ROUNDS} rounds, one at a time", highlight=False)
    out.print(table)


async def _one(pipeline: Pipeline, pixels: Plane, rows: dict[str, list[float]]) -> None:
    """Time every journey of one picture, and the AVIF encode beside them."""
    dtype = str(pipeline.engine.dtype).removeprefix("torch.")
    content, picture = source.as_png(pixels), Image.fromarray(pixels)
    by_size, by_quality = CompressOptions(max_bytes=MAX_BYTES), CompressOptions(quality=50)
    blob = (await pipeline.compress(content, by_size)).content
    runs: dict[str, Callable[[], Awaitable[object]]] = {
        f"compress, max_bytes={MAX_BYTES}, {dtype}": lambda: pipeline.compress(content, by_size),
        f"compress, quality=50, {dtype}": lambda: pipeline.compress(content, by_quality),
        f"cold render to WebP, {dtype}": lambda: pipeline.render(blob, RenderOptions("webp")),
        f"cold render to WebP, steps=0, {dtype}": lambda: pipeline.render(blob, RenderOptions("webp", 0)),
    }
    for label, call in runs.items():
        started = time.perf_counter()
        await call()
        rows.setdefault(label, []).append(1000 * (time.perf_counter() - started))
    quality = _avif_quality(picture)
    started = time.perf_counter()
    _avif(picture, quality)
    rows.setdefault(f"{REFERENCE}, beside {dtype}", []).append(1000 * (time.perf_counter() - started))
