"""How long one picture takes, alone on the machine, against one AVIF encode of the same size at Pillow's default speed."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.bench import pictures as source
from service.bench.metrics import Plane
from service.pipeline import CompressOptions, RenderOptions, open_pipeline
from service.settings import Settings

MAX_BYTES = 5089
ROUNDS = 3


def _avif_quality(picture: Image.Image) -> int:
    """Lowest quality, in steps of 2, that gives at least ``MAX_BYTES`` at Pillow's default speed."""
    return next((quality for quality in range(2, 100, 2) if len(_avif(picture, quality)) >= MAX_BYTES), 100)


def _avif(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "AVIF", quality=quality)
    return out.getvalue()


def main(settings: Settings, images: Path, out: Console) -> None:
    """Run and print: median and 90th percentile in ms, over pictures and rounds."""
    pictures = source.load(images, 512, None)

    async def timed(call: Callable[[], Awaitable[object]]) -> float:
        started = time.perf_counter()
        await call()
        return 1000 * (time.perf_counter() - started)

    async def run() -> None:
        table = Table("", "median ms", "p90 ms", "of one AVIF encode")
        rows: dict[str, list[float]] = {}
        for dtype in dict.fromkeys((settings.dtype, "float32")):
            async with open_pipeline(settings.model_copy(update={"dtype": dtype})) as pipeline:
                out.print(f"{pipeline.engine.description}; {source.machine()}", highlight=False)
                name = str(pipeline.engine.dtype).removeprefix("torch.")
                for _ in range(ROUNDS):
                    for pixels in pictures.values():
                        await one(pipeline, pixels, name, rows)
        reference = float(np.median(rows["AVIF encode, default speed, no search"]))
        for label, values in rows.items():
            middle = float(np.median(values))
            table.add_row(label, f"{middle:.1f}", f"{np.percentile(values, 90):.1f}", f"{middle / reference:.2f}")
        out.print(f"{len(pictures)} centre crops 512x512 of {images}, {ROUNDS} rounds")
        out.print(table)

    async def one(pipeline: object, pixels: Plane, name: str, rows: dict[str, list[float]]) -> None:
        from service.pipeline import Pipeline

        assert isinstance(pipeline, Pipeline)
        content, picture = source.as_png(pixels), Image.fromarray(pixels)
        compressed = await pipeline.compress(content, CompressOptions(max_bytes=MAX_BYTES))
        by_size, by_quality = CompressOptions(max_bytes=MAX_BYTES), CompressOptions(quality=50)
        runs: dict[str, Callable[[], Awaitable[object]]] = {
            f"compress, max_bytes={MAX_BYTES}, {name}": lambda: pipeline.compress(content, by_size),
            f"compress, quality=50, {name}": lambda: pipeline.compress(content, by_quality),
            f"cold render to WebP, {name}": lambda: pipeline.render(compressed.content, RenderOptions("webp")),
            f"cold render to WebP, steps=0, {name}": lambda: pipeline.render(compressed.content, RenderOptions("webp", 0)),
        }
        for label, call in runs.items():
            rows.setdefault(label, []).append(await timed(call))
        if "AVIF encode" not in " ".join(rows) or name != "float32":
            quality = _avif_quality(picture)
            started = time.perf_counter()
            _avif(picture, quality)
            rows.setdefault("AVIF encode, default speed, no search", []).append(1000 * (time.perf_counter() - started))

    asyncio.run(run())
