"""Latents of training crops under a finished auto-encoder, kept in memory: what the later stages train on."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from service.codec.steps import STEP_COUNT, step_size
from service.engine.autoencoder import ResidualAutoencoder
from training.config import Config
from training.data import Pictures
from training.loop import Progress
from training.networks import as_input, build, encode

BATCH = 32
"""crops that are encoded together"""


def finished_vae(config: Config, folder: Path) -> Progress:
    """The averaged weights of stage 1, as left in ``folder``."""
    vae, context = build(config)
    progress = Progress("vae", {"vae": vae, "context": context}, config.vae_stage, folder, muon=("vae", "context"))
    if progress.step == 0:
        raise SystemExit(f"{folder} holds no auto-encoder: run `python -m training vae` first")
    return progress


@torch.no_grad()
def random_latents(vae: ResidualAutoencoder, pictures: Pictures, count: int, seed: int, config: Config) -> torch.Tensor:
    """Latents (N, C, S/16, S/16), as the auto-encoder returns them, of ``count`` random crops."""
    rng = random.Random(seed)
    batches = (pictures.random_crops(rng, BATCH) for _ in range(0, count, BATCH))
    return torch.cat([encode(vae, as_input(crops), config).cpu() for crops in batches])


def shipped_steps(config: Config, scale: float) -> list[int]:
    """Step indices, of the normalised latent, between the ends of the range that stage 1 was trained over.

    Raises SystemExit where a file can name none of them.
    """
    low, high = config.loss.smallest_step / scale, config.loss.largest_step / scale
    indices = [index for index in range(STEP_COUNT) if low <= step_size(index) <= high]
    if not indices:
        raise SystemExit(f"the latents, {scale:.3g} on average, are too small for steps from {config.loss.smallest_step}: train longer")
    return indices
