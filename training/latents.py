"""Latents of training crops under a finished auto-encoder, kept in memory: what the later stages train on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from service.codec.steps import step_size
from service.engine.autoencoder import ResidualAutoencoder
from training.config import Config
from training.data import Pictures
from training.loop import Progress
from training.networks import as_input, build, encode


@dataclass(frozen=True)
class Encoded:
    """Crops, uint8 (N, 3, S, S), with their latents (N, C, S/16, S/16) as the auto-encoder returns them, and the auto-encoder."""

    crops: torch.Tensor
    latents: torch.Tensor
    vae: ResidualAutoencoder
    scale: float
    """standard deviation of all latents together: divides them in the shipped model, so that one step fits all channels"""


def finished_vae(config: Config, folder: Path) -> Progress:
    """The averaged weights of stage 1, as left in ``folder``."""
    vae, context = build(config)
    progress = Progress("vae", {"vae": vae, "context": context}, config.vae_stage, folder, muon=("vae", "context"))
    if progress.step == 0:
        raise SystemExit(f"{folder} holds no auto-encoder: run `python -m training vae` first")
    return progress


@torch.no_grad()
def encode_crops(config: Config, images: list[Path], folder: Path, count: int) -> Encoded:
    """Encode ``count`` random crops of the training pictures."""
    vae = finished_vae(config, folder).averaged["vae"]
    assert isinstance(vae, ResidualAutoencoder)
    pictures = Pictures(images, config.data, validation=False)
    rng = random.Random(config.seed + 1)
    crops, latents = [], []
    for _ in range(0, count, 32):
        part = pictures.random_crops(rng, 32)
        crops.append(part)
        latents.append(encode(vae, as_input(part), config).cpu())
    everything = torch.cat(latents)
    return Encoded(torch.cat(crops), everything, vae, float(everything.std()))


def shipped_steps(config: Config, scale: float) -> list[int]:
    """Step indices, of the normalised latent, between the ends of the range that stage 1 was trained over."""
    low, high = config.loss.smallest_step / scale, config.loss.largest_step / scale
    return [index for index in range(256) if low <= step_size(index) <= high]
