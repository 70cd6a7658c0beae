"""Stage 1: the auto-encoder and its context model together, for rate and distortion at every step."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch

from training import machine
from training.config import Config
from training.data import Pictures
from training.graft import graft
from training.loop import Progress
from training.losses import Distortion, structure_distance
from training.networks import as_input, build, decode, encode, psnr
from training.ssimulacra import ssimulacra2
from training.start import start_from


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
    for index in itertools.count(1):
        if progress.fraction >= 1:
            break
        pixels = as_input(next(batches))
        step = draw_steps(len(pixels), config)
        latent = encode(vae, pixels, config)
        rounded = round_to_step(latent, step)
        noisy = latent + (torch.rand_like(latent) - 0.5) * step.view(-1, 1, 1, 1)
        with machine.mixed():
            bpp = context(rounded, noisy, step) / pixels[0, 0].numel()
        decoded = decode(vae, rounded, config)
        loss, parts = distortion(decoded, pixels, step)
        loss = loss + (step**config.loss.balance * bpp).mean()
        norm = progress.update(loss)
        progress.note(bpp=bpp.detach().mean(), **parts, loss=loss.detach(), norm=norm)
        if index % 1000 == 0:
            progress.log(validation=evaluate(progress, held_out, distortion, config))
    progress.save()
    progress.log(validation=evaluate(progress, held_out, distortion, config))


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
