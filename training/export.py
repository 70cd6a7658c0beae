"""Averaged weights to a model folder that `sdc serve --model DIR` accepts: fp16 networks, integer entropy profile, ``sdc.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from service.calibration.integers import integer_passes
from service.calibration.tables import fit_counts, fit_rate_guess
from service.codec.entropy import EntropyCoder
from service.codec.profile import context_predictor
from service.codec.steps import UNIT_STEP_INDEX
from service.codec.tables import logistic_counts
from service.folders import make_readable
from training import context_stage, unet
from training.config import Config
from training.latents import encode_crops, shipped_steps

GUESS_CROPS = 192
"""that the guess of a size is fitted to"""


def export(config: Config, images: list[Path], folder: Path, out: Path) -> None:
    """Write the model folder ``out``; the model card beside it is written by hand."""
    context, scale = context_stage.load(config, folder)
    tensors = integer_passes(context.cpu())
    tensors["counts"] = logistic_counts()
    indices = shipped_steps(config, scale)
    predictor = context_predictor(tensors, config.autoencoder.latent_channels)
    latents = (encode_crops(config, images, folder, config.context.table_crops) / scale).numpy()
    tensors["counts"] = fit_counts(predictor, latents, indices, np.random.default_rng(config.seed))

    coder = EntropyCoder(context_predictor(tensors, config.autoencoder.latent_channels))

    out.mkdir(parents=True, exist_ok=True)
    progress = unet.finished(config, folder)
    for part, module in progress.averaged.items():
        module.cpu().half().save_pretrained(out / part)
    unet.scheduler().save_pretrained(out / "scheduler")
    save_file(tensors, out / "entropy.safetensors")
    channels = config.autoencoder.latent_channels
    manifest = {
        "name": config.name,
        "version": config.version,
        "patch_factor": config.patch_factor,
        "downscale": config.patch_factor * 2 ** (len(config.autoencoder.block_out_channels) - 1),
        "latent_channels": channels,
        "latent_mean": [0.0] * channels,
        "latent_std": [round(scale, 6)] * channels,
        "entropy": {"kind": "context", "file": "entropy.safetensors"},
        "rate_points": {"quality_0": indices[-1], "quality_100": indices[0]},
        "rate_guess": fit_rate_guess(coder, latents[:GUESS_CROPS], config.data.crop**2, indices),
        "default_steps": 1 if progress.step else 0,
    }
    (out / "sdc.json").write_text(json.dumps(manifest, indent=2) + "\n")
    make_readable(out)
    print(f"{out}: unit step index {UNIT_STEP_INDEX}, steps {indices[0]}..{indices[-1]}, latent scale {scale:.4f}")
