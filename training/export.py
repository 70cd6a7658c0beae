"""Averaged weights to a model folder that `sdc serve --model DIR` accepts: fp16 networks, integer entropy profile, ``sdc.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from service.codec.codec import rate_shape
from service.codec.context import ContextPredictor
from service.codec.entropy import EntropyCoder
from service.codec.profile import context_predictor
from service.codec.steps import UNIT_STEP_INDEX, quantise
from service.codec.tables import ALPHABET, ESCAPE, REACH, Counts, counts_from_weights, logistic_counts
from training import context_stage, unet
from training.config import Config
from training.latents import encode_crops, shipped_steps
from training.profile import integer_passes

PRIOR_WEIGHT = 4000
"""observations that the logistic counts for when a table is fitted to what occurred"""
GUESS_CROPS, GUESS_EVERY = 192, 10
"""crops, and every so many step indices, that the guess of a size is fitted to"""
GUESS_RANGE = (0.03, 0.6)
"""bits a pixel that sizes are asked for"""


def fit_counts(predictor: ContextPredictor, latents: np.ndarray, indices: list[int], rng: np.random.Generator) -> Counts:
    """Tables of what really occurred under each prediction, with the logistic as prior."""
    coder = EntropyCoder(predictor)
    prior = logistic_counts()
    seen = np.zeros((prior.shape[0] * prior.shape[1], ALPHABET), np.int64)
    for latent in latents:
        index = int(rng.choice(indices))
        for table, letters in coder.letters(quantise(latent, index), index):
            np.add.at(seen, (table, letters), 1)
    weights = seen.reshape(prior.shape) * 65536 + prior.astype(np.int64) * PRIOR_WEIGHT
    counts = [[counts_from_weights(row.tolist()) for row in table] for table in weights]
    assert ESCAPE == 2 * REACH + 1
    return np.array(counts, np.int32)


def fit_rate_guess(coder: EntropyCoder, latents: np.ndarray, pixels: int, indices: list[int]) -> dict[str, float]:
    """The power law between ``rate_shape`` and the ideal bits of these latents (N, C, h, w), each of so many pixels."""
    shapes, rates = [], []
    for latent in latents:
        shape = rate_shape(latent)
        for index in indices[::GUESS_EVERY]:
            bits = coder.ideal_bits(quantise(latent, index), index)
            if GUESS_RANGE[0] < bits / pixels < GUESS_RANGE[1]:
                shapes.append(shape[index])
                rates.append(bits / latent.size)
    if len(rates) < 2:
        return {}
    shape_logs, rate_logs = np.log(shapes), np.log(rates)
    slope = float(np.clip(np.polyfit(shape_logs, rate_logs, 1)[0], 0.5, 3))
    return {"rate": round(float(np.exp(np.mean(rate_logs - slope * shape_logs))), 3), "slope": round(slope, 3)}


def export(config: Config, images: list[Path], folder: Path, out: Path) -> None:
    """Write the model folder ``out``; the model card beside it is written by hand."""
    context, scale = context_stage.load(config, folder)
    encoded = encode_crops(config, images, folder, config.context.table_crops)
    tensors = integer_passes(context)
    tensors["counts"] = logistic_counts()
    indices = shipped_steps(config, scale)
    predictor = context_predictor(tensors, config.autoencoder.latent_channels)
    latents = (encoded.latents / scale).numpy()
    tensors["counts"] = fit_counts(predictor, latents, indices, np.random.default_rng(config.seed))

    coder = EntropyCoder(context_predictor(tensors, config.autoencoder.latent_channels))

    out.mkdir(parents=True, exist_ok=True)
    progress = unet.finished(config, folder)
    for part, module in progress.averaged.items():
        module.half().save_pretrained(out / part)
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
    print(f"{out}: unit step index {UNIT_STEP_INDEX}, steps {indices[0]}..{indices[-1]}, latent scale {scale:.4f}")
