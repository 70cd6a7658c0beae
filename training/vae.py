"""Stage 1: the auto-encoder and its context model together, for rate and distortion at every step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from service.calibration.context import ContextModel
from service.engine.autoencoder import ResidualAutoencoder
from training import machine
from training.config import Config
from training.data import Pictures
from training.graft import graft
from training.loop import Progress
from training.losses import Distortion, structure_distance
from training.networks import as_input, build, decode, encode, psnr
from training.ssimulacra import ssimulacra2
from training.start import start_from

EVALUATED = 1000
"""steps between two looks at the held-out crops"""


def draw_steps(count: int, config: Config) -> torch.Tensor:
    """(count,) quantiser steps, log-uniform between the configured ends."""
    return log_uniform(count, config.loss.smallest_step, config.loss.largest_step)


def log_uniform(count: int, smallest: float, largest: float) -> torch.Tensor:
    """(count,) random numbers whose logarithms are uniform between those of the ends."""
    low, high = math.log(smallest), math.log(largest)
    return torch.exp(low + (high - low) * torch.rand(count, device=machine.device()))


def round_to_step(latent: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Quantised latent whose gradient is the latent's own (straight-through)."""
    width = step.view(-1, 1, 1, 1)
    return latent + (torch.round(latent / width) * width - latent).detach()


def train(config: Config, images: list[Path], folder: Path, start: Path | None = None) -> None:
    """Train for the configured minutes, or what is left of them; checkpoints and log go to ``folder``.

    ``start`` is a model folder to begin from; a checkpoint in ``folder`` goes before it.
    """
    pictures = Pictures(images, config.data, validation=False)
    held_out = Pictures(images, config.data, validation=True).centre_crops(48)
    print(f"{len(pictures.pictures)} pictures to train on, {len(held_out)} held out", flush=True)
    vae, context = build(config)
    shape = config.autoencoder
    if start is not None and not (folder / "vae.pt").exists():
        fresh = start_from(start, vae, context)
        if fresh and shape.linear:
            graft(vae, fresh, pictures, config)
    distortion = Distortion(config.loss)
    progress = Progress("vae", {"vae": vae, "context": context}, config.vae_stage, folder, muon=("vae", "context"))
    batches = pictures.batches(config.vae_stage.batch, config.seed + progress.step)

    def differentiate(crops: torch.Tensor) -> dict[str, torch.Tensor]:
        figures: list[dict[str, torch.Tensor]] = []

        def losses() -> Iterator[torch.Tensor]:
            for piece in crops.chunk(config.vae_stage.pieces):
                loss, parts = loss_of(vae, context, distortion, as_input(piece), config)
                figures.append(parts | {"loss": loss.detach()})
                yield loss / config.vae_stage.pieces

        norm = progress.differentiate(losses())
        return {name: torch.stack([each[name] for each in figures]).mean() for name in figures[0]} | {"norm": norm}

    differentiate = machine.captured(differentiate, next(batches))
    for index in itertools.count(1):
        if progress.fraction >= 1:
            break
        parts = differentiate(next(batches))
        progress.advance()
        progress.note(**parts)
        if index % EVALUATED == 0:
            progress.log(validation=evaluate(progress, held_out, distortion, config))
    progress.save()
    progress.log(validation=evaluate(progress, held_out, distortion, config))


def loss_of(
    vae: ResidualAutoencoder, context: ContextModel, distortion: Distortion, pixels: torch.Tensor, config: Config
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of a batch (N, 3, S, S) in -1..1 at random steps, and its parts for the log."""
    step = draw_steps(len(pixels), config)
    latent = encode(vae, pixels, config)
    rounded = round_to_step(latent, step)
    noisy = latent + (torch.rand_like(latent) - 0.5) * step.view(-1, 1, 1, 1)
    with machine.mixed():
        bpp = context(rounded, noisy, step) / pixels[0, 0].numel()
    loss, parts = distortion(decode(vae, rounded, config), pixels, step)
    return loss + (step**config.loss.balance * bpp).mean(), parts | {"bpp": bpp.detach().mean()}


@torch.no_grad()
def evaluate(progress: Progress, crops: torch.Tensor, distortion: Distortion, config: Config) -> list[dict[str, float]]:
    """Averaged weights on held-out crops at five steps: bits per pixel, PSNR (dB), MS-SSIM and SSIMULACRA2 as in the loss, features."""
    vae, context = progress.averaged["vae"], progress.averaged["context"]
    figures = []
    ends = math.log2(config.loss.smallest_step), math.log2(config.loss.largest_step)
    for size in torch.logspace(*ends, 5, base=2).tolist():
        totals = torch.zeros(5)
        for part in crops.split(8):
            pixels, step = as_input(part), torch.full((len(part),), size, device=machine.device())
            rounded = round_to_step(encode(vae, pixels, config), step)
            decoded = decode(vae, rounded, config).float().clamp(-1, 1)
            with machine.mixed():
                bpp = context(rounded, rounded, step) / pixels[0, 0].numel()
                feature = distortion.features(decoded, pixels)
            structure = 1 - structure_distance(decoded, pixels)
            ssimulacra = ssimulacra2(pixels, decoded, finest=1)
            totals += torch.stack([bpp, psnr(decoded, pixels), structure, ssimulacra, feature]).sum(1).cpu()
        means = [round(value, 4) for value in (totals / len(crops)).tolist()]
        figures.append({"step": round(size, 3), **dict(zip(("bpp", "psnr", "ms_ssim", "ssimulacra2", "feature"), means, strict=True))})
    return figures
