"""The codec alone: real files against the ideal code length, against coding each channel i.i.d., and against the article's palette."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from service.bench import palette
from service.bench import pictures as source
from service.codec import container
from service.codec.codec import Frame
from service.codec.steps import Symbols
from service.loading import load_model
from service.settings import Settings

QUALITIES = (10, 30, 50, 70, 90)


def iid_bits(symbols: Symbols) -> float:
    """Bits of each channel under its own histogram in this picture, the histogram itself for nothing: kinder than any real i.i.d. coder."""
    total = 0.0
    for channel in symbols:
        _, counts = np.unique(channel, return_counts=True)
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total


def main(settings: Settings, images: Path, crop: int, limit: int | None, out: Console) -> None:
    """Run and print."""
    pictures = source.load(images, crop, limit)
    engine, codec = load_model(settings)
    factor = engine.manifest.downscale
    table = Table("quality", "step", "file B", "payload B", "ideal B", "payload over ideal", "i.i.d. B", "gain over i.i.d.")
    rows: dict[int, list[tuple[float, float, float, float]]] = {quality: [] for quality in QUALITIES}
    for pixels in pictures.values():
        height, width = pixels.shape[:2]
        latent = engine.encode(palette.padded(pixels, factor)[None])[0]
        for quality in QUALITIES:
            index = engine.manifest.rate_points.step_index(quality)
            symbols = codec.quantise(latent, index)
            blob = codec.encode(latent, Frame(width, height), index)
            assert (codec.decode_symbols(blob) == symbols).all()
            payload = len(blob.sections[container.LATENT])
            ideal = codec.entropy.ideal_bits(symbols, index) / 8
            rows[quality].append((len(container.write(blob)), payload, ideal, iid_bits(symbols) / 8))
    for quality, figures in rows.items():
        whole, payload_mean, ideal_mean, iid = np.mean(figures, 0)
        index = engine.manifest.rate_points.step_index(quality)
        table.add_row(
            str(quality), str(index), f"{whole:.0f}", f"{payload_mean:.0f}", f"{ideal_mean:.1f}",
            f"{100 * (payload_mean / ideal_mean - 1):+.2f} %", f"{iid:.0f}", f"{100 * (1 - payload_mean / iid):.1f} %",
        )  # fmt: skip
    out.print(f"{len(pictures)} pictures of {images}; {engine.description}; {source.machine()}", highlight=False)
    out.print(table)
    out.print(palette.table(engine, codec, list(pictures.values())))
