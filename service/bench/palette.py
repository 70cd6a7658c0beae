"""The article's palette against ``latent``: on the same latents, at the same bytes, the squared error the U-Net would be handed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table

from service.bench import full_size
from service.codec import container, palette
from service.codec.codec import Codec, Frame
from service.codec.steps import Latent
from service.engine.device import pick_dtype
from service.engine.engine import Engine
from service.manifest import Manifest


def padded(pixels: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """With its own edge around, to whole latent positions."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")


def of_random_weights(pictures: Sequence[npt.NDArray[np.uint8]]) -> tuple[Codec, list[Latent]]:
    """Latents of Stable Diffusion's auto-encoder at full size with random weights, normalised channel by channel, and a codec for them."""
    network = full_size.vae().to(pick_dtype(torch.device("cpu")), memory_format=torch.channels_last).eval()
    raw = [full_size.latents(network, padded(pixels, full_size.DOWNSCALE)[None])[0] for pixels in pictures]
    everything = np.concatenate([latent.reshape(full_size.CHANNELS, -1) for latent in raw], 1)
    mean, deviation = everything.mean(1)[:, None, None], everything.std(1)[:, None, None]
    manifest = Manifest.model_validate(full_size.manifest(mean.ravel().tolist(), deviation.ravel().tolist()))
    return Codec(Path(), manifest), [(latent - mean) / deviation for latent in raw]


def compare(codec: Codec, latent: Latent, width: int, height: int) -> tuple[int, int, float, float, float]:
    """Bytes of the article's file and of ours, and the mean squared errors: dithered as the article's, undithered, ours."""
    article = codec.encode_palette(latent, Frame(width, height))
    size = len(container.write(article))
    ours = codec.encode_within(latent, Frame(width, height), size)
    plain = palette.decode(palette.encode(latent, dithered=False), *latent.shape[1:])
    errors = [float(np.mean((read - latent) ** 2)) for read in (codec.decode(article), plain, codec.decode(ours))]
    return size, len(container.write(ours)), errors[0], errors[1], errors[2]


def table(engine: Engine, codec: Codec, pictures: Sequence[npt.NDArray[np.uint8]]) -> Table:
    """Of this model where its latent has four channels, else of random weights."""
    if engine.manifest.latent_channels == palette.CHANNELS:
        name, latents = engine.manifest.name, [engine.encode(padded(pixels, engine.manifest.downscale)[None])[0] for pixels in pictures]
    else:
        name = "Stable Diffusion 1.5's auto-encoder, full size, random weights, normalised channel by channel"
        codec, latents = of_random_weights(pictures)
    sizes = [(pixels.shape[1], pixels.shape[0]) for pixels in pictures]
    rows = np.array([compare(codec, latent, *size) for latent, size in zip(latents, sizes, strict=True)])
    article, ours, dithered, undithered, error = rows.T
    made = Table("", "mean", "median", "worst", title=f"the article's palette against `latent`, {len(rows)} pictures; {name}")
    for what, values, form in (
        ("palette, bytes", article, ".0f"), ("latent, bytes", ours, ".0f"), ("palette, squared error", dithered, ".4f"),
        ("palette without dither, squared error", undithered, ".4f"), ("latent, squared error", error, ".4f"),
        ("latent / palette", error / dithered, ".2f"), ("latent / palette without dither", error / undithered, ".2f"),
    ):  # fmt: skip
        made.add_row(what, *(format(value, form) for value in (values.mean(), np.median(values), values.max())))
    return made
