"""Stage 1: the auto-encoder and its context model together, for rate and distortion at every step."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
from torch.nn import functional as F

from service.bench.features import FeatureDistance
from service.engine.autoencoder import ResidualAutoencoder
from training.config import Config
from training.context import ContextModel
from training.data import Pictures
from training.loop import Progress


def build(config: Config) -> tuple[ResidualAutoencoder, ContextModel]:
    torch.manual_seed(config.seed)
    shape = config.autoencoder
    vae = ResidualAutoencoder(
        in_channels=3 * config.patch_factor**2,
        latent_channels=shape.latent_channels,
        block_out_channels=tuple(shape.block_out_channels),
        encoder_layers=tuple(shape.encoder_layers),
        decoder_layers=tuple(shape.decoder_layers),
    )
    return vae.to(memory_format=torch.channels_last), ContextModel(config.context.group_sizes, config.context.hidden)


def draw_steps(count: int, config: Config) -> torch.Tensor:
    """(count,) quantiser steps, log-triangular between the configured ends: the middle rates matter most."""
    low, high = math.log(config.loss.smallest_step), math.log(config.loss.largest_step)
    return torch.exp(low + (high - low) * (torch.rand(count) + torch.rand(count)) / 2)


def round_to_step(latent: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Quantised latent whose gradient is the latent's own (straight-through)."""
    width = step.view(-1, 1, 1, 1)
    return latent + (torch.round(latent / width) * width - latent).detach()


def train(config: Config, images: list[Path], folder: Path) -> None:
    """Train for the configured minutes, or what is left of them; checkpoints and log go to ``folder``."""
    pictures = Pictures(images, config.data, validation=False)
    held_out = Pictures(images, config.data, validation=True).centre_crops(48)
    print(f"{len(pictures.pictures)} pictures to train on, {len(held_out)} held out", flush=True)
    vae, context = build(config)
    distance = FeatureDistance("lite0").to(memory_format=torch.channels_last)
    progress = Progress("vae", {"vae": vae, "context": context}, config.vae_stage, folder)
    loss_of, stage = config.loss, config.vae_stage
    sums: dict[str, float] = {}
    batches = pictures.batches(stage.batch, config.seed + progress.step)
    for index in itertools.count():
        if progress.fraction >= 1:
            break
        pixels = next(batches).float() / 127.5 - 1
        step = draw_steps(stage.batch, config)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(F.pixel_unshuffle(pixels, config.patch_factor)).latent
        latent = latent.float()
        rounded = round_to_step(latent, step)
        noisy = latent + (torch.rand_like(latent) - 0.5) * step.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            bpp = context(rounded, noisy, step) / pixels[0, 0].numel()
            decoded = F.pixel_shuffle(vae.decode(rounded).sample, config.patch_factor)
            few = loss_of.feature_crops
            feature = distance(decoded[:few], pixels[:few])
        mse = (decoded.float() - pixels).square().mean((1, 2, 3)) * 127.5**2
        rate_distortion = bpp + loss_of.mse * step**-loss_of.mse_exponent * mse
        weight = step**loss_of.balance
        perceptual = loss_of.feature * step[:few] ** -loss_of.feature_exponent * feature
        loss = (weight * rate_distortion).mean() + (weight[:few] * perceptual).mean()
        norm = progress.update(loss)
        for key, value in {"bpp": bpp, "mse": mse, "feature": feature, "loss": loss}.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach().mean())
        sums["norm"] = sums.get("norm", 0.0) + norm
        if index % 100 == 99:
            progress.log(**{key: round(value / 100, 4) for key, value in sums.items()})
            sums = {}
        if index % 1000 == 999:
            progress.log(validation=evaluate(progress, held_out, distance, config))
    progress.save()
    progress.log(validation=evaluate(progress, held_out, distance, config))


@torch.no_grad()
def evaluate(progress: Progress, crops: torch.Tensor, distance: FeatureDistance, config: Config) -> list[dict[str, float]]:
    """Averaged weights on held-out crops at three steps: bits per pixel, PSNR (dB, of the mean squared error) and feature distance."""
    vae, context = progress.averaged["vae"], progress.averaged["context"]
    figures = []
    for size in (0.5, 1.0, 2.0):
        totals = torch.zeros(3)
        for part in crops.split(8):
            pixels = part.float() / 127.5 - 1
            step = torch.full((len(part),), size)
            with torch.autocast("cpu", torch.bfloat16):
                latent = vae.encode(F.pixel_unshuffle(pixels, config.patch_factor)).latent.float()
                rounded = round_to_step(latent, step)
                bpp = context(rounded, rounded, step) / pixels[0, 0].numel()
                decoded = F.pixel_shuffle(vae.decode(rounded).sample, config.patch_factor).float().clamp(-1, 1)
                feature = distance(decoded, pixels)
            mse = (decoded - pixels).square().mean((1, 2, 3)) * 127.5**2
            psnr = 10 * torch.log10(255**2 / mse)
            totals += torch.stack([bpp, psnr, feature]).sum(1)
        bpp_mean, psnr_mean, feature_mean = (totals / len(crops)).tolist()
        figures.append({"step": size, "bpp": round(bpp_mean, 4), "psnr": round(psnr_mean, 2), "feature": round(feature_mean, 4)})
    return figures
