"""Averaged weights to a model folder that `sdc serve --model DIR` accepts: fp16 networks, integer entropy profile, ``sdc.json``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from service.calibration.integers import integer_passes
from service.calibration.tables import fit_counts, fit_rate_guess
from service.codec.entropy import EntropyCoder
from service.codec.profile import context_predictor
from service.codec.steps import STEP_COUNT, UNIT_STEP_INDEX, nearest_step
from service.codec.tables import logistic_counts
from service.engine.autoencoder import ResidualAutoencoder
from service.folders import make_readable
from service.manifest import Manifest
from training import context_stage, unet
from training.config import Config
from training.data import Pictures
from training.latents import random_latents, shipped_steps
from training.refit import coarsest_steps, refit_last_layers, samples

GUESS_CROPS = 192
"""that the guess of a size is fitted to"""


def last_steps(config: Config, scale: float) -> list[int]:
    """Of each group of channels the last step index that it is sent at."""
    return [STEP_COUNT - 1 if math.isinf(step) else nearest_step(step / scale) for step in config.context.coarsest_steps]


def shrinking(config: Config, scale: float) -> dict[str, int]:
    """From which step indices on a picture is better coded smaller, as ``sdc.json`` has them."""
    three_quarters, half = (nearest_step(step / scale) for step in config.export.shrink_steps)
    return {"three_quarters": three_quarters, "half": half}


@torch.no_grad()
def export(config: Config, images: list[Path], folder: Path, out: Path) -> None:
    """Write the model folder ``out``, the decoder's last layers solved for; the model card beside it is written by hand."""
    context, scale = context_stage.load(config, folder)
    tensors = integer_passes(context.cpu())
    tensors["counts"] = logistic_counts()
    indices, coarsest = shipped_steps(config, scale), last_steps(config, scale)
    predictor = context_predictor(tensors, config.autoencoder.latent_channels, tuple(coarsest))
    progress = unet.finished(config, folder)
    vae, net = progress.averaged["vae"], progress.averaged["unet"]
    assert isinstance(vae, ResidualAutoencoder)
    pictures = Pictures(images, config.data, validation=False)
    latents = (random_latents(vae, pictures, config.context.table_crops, config.seed + 1, config) / scale).numpy()
    tensors["counts"] = fit_counts(predictor, latents, indices, np.random.default_rng(config.seed))

    coder = EntropyCoder(context_predictor(tensors, config.autoencoder.latent_channels, tuple(coarsest)))

    channels = config.autoencoder.latent_channels
    told = {
        "name": config.name,
        "version": config.version,
        "patch_factor": config.patch_factor,
        "downscale": config.patch_factor * 2 ** (len(config.autoencoder.block_out_channels) - 1),
        "latent_channels": channels,
        "latent_mean": [0.0] * channels,
        "latent_std": [round(scale, 6)] * channels,
        "entropy": {"kind": "context", "file": "entropy.safetensors", "coarsest": coarsest},
        "rate_points": {"quality_0": indices[-1], "quality_100": indices[0]},
        "rate_guess": fit_rate_guess(coder, latents[:GUESS_CROPS], config.data.crop**2, indices),
        "scaling": shrinking(config, scale),
        "flat_ground": True,
        "default_steps": 1 if progress.step else 0,
    }
    sent = coarsest_steps(Manifest.model_validate(told), tensors)
    refit_last_layers(vae, samples(vae, pictures, sent, config), config.refit.share)
    for parameter in net.conv_out.parameters():
        parameter.mul_(config.export.unet)

    out.mkdir(parents=True, exist_ok=True)
    for part, module in progress.averaged.items():
        module.cpu().half().save_pretrained(out / part)
    unet.scheduler().save_pretrained(out / "scheduler")
    save_file(tensors, out / "entropy.safetensors")
    (out / "sdc.json").write_text(json.dumps(told, indent=2) + "\n")
    make_readable(out)
    print(f"{out}: unit step index {UNIT_STEP_INDEX}, steps {indices[0]}..{indices[-1]}, latent scale {scale:.4f}")
