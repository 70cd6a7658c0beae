"""Averaged weights to a model folder that `sdc serve --model DIR` accepts: fp16 networks, integer entropy profile, ``sdc.json``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from service.codec.context import HIDDEN_BITS, LATENT_BITS, WEIGHT_BITS, ContextPredictor
from service.codec.entropy import EntropyCoder
from service.codec.profile import context_predictor
from service.codec.steps import STEPS_PER_OCTAVE, UNIT_STEP_INDEX, quantise
from service.codec.tables import ALPHABET, ESCAPE, REACH, SCALES_PER_OCTAVE, Counts, counts_from_weights, logistic_counts
from training import context_stage, unet
from training.config import Config
from training.context import ContextModel
from training.latents import encode_crops, finished_vae, shipped_steps
from training.loop import Progress

PRIOR_WEIGHT = 4000
"""observations that the logistic counts for when a table is fitted to what occurred"""


def integer_passes(context: ContextModel) -> dict[str, np.ndarray]:
    """Weights of the float model as the integers of docs/FORMAT.md."""
    tensors: dict[str, np.ndarray] = {"group_sizes": np.array(context.group_sizes, np.int32)}
    # (step index above 128) * this = log(step), the float model's input
    log_step = math.log(2) / STEPS_PER_OCTAVE
    eighths = SCALES_PER_OCTAVE / math.log(2)
    first, later = 1 << (LATENT_BITS + WEIGHT_BITS), 1 << (HIDDEN_BITS + WEIGHT_BITS)

    def fixed(values: torch.Tensor, scale: float, dtype: type[np.signedinteger]) -> np.ndarray:
        rounded = np.rint(values.detach().double().numpy() * scale)
        limit = np.iinfo(dtype).max
        return np.ascontiguousarray(np.clip(rounded, -limit, limit).astype(dtype))

    for index, item in enumerate(context.passes):
        half = item.out.weight.shape[0] // 2
        out_unit = torch.cat([torch.ones(half), torch.full((half,), eighths)])
        tensors |= {
            f"{index}.window": fixed(item.window.weight.flatten(1).T, 1 << WEIGHT_BITS, np.int16),
            f"{index}.window_bias": fixed(item.window.bias, first, np.int32),
            f"{index}.window_step": fixed(item.step.weight[:, 0] * log_step, first, np.int32),
            f"{index}.middle": fixed(item.middle.weight[:, :, 0, 0].T, 1 << WEIGHT_BITS, np.int16),
            f"{index}.middle_bias": fixed(item.middle.bias, later, np.int32),
            f"{index}.out": fixed((item.out.weight[:, :, 0, 0] * out_unit[:, None]).T, 1 << WEIGHT_BITS, np.int16),
            f"{index}.out_bias": fixed(item.out.bias * out_unit, later, np.int32),
        }
    return tensors


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


def export(config: Config, images: list[Path], folder: Path, out: Path) -> None:
    """Write the model folder ``out``; the model card beside it is written by hand."""
    context, scale = context_stage.load(config, folder)
    encoded = encode_crops(config, images, folder, 1536)
    tensors = integer_passes(context)
    tensors["counts"] = logistic_counts()
    indices = shipped_steps(config, scale)
    predictor = context_predictor(tensors, config.autoencoder.latent_channels)
    latents = (encoded.latents / scale).numpy()
    tensors["counts"] = fit_counts(predictor, latents, indices, np.random.default_rng(config.seed))

    out.mkdir(parents=True, exist_ok=True)
    finished_vae(config, folder).averaged["vae"].half().save_pretrained(out / "vae")
    network = unet.build(config)
    progress = Progress("unet", {"unet": network}, config.unet_stage, folder)
    progress.averaged["unet"].half().save_pretrained(out / "unet")
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
        "default_steps": 1 if progress.step else 0,
    }
    (out / "sdc.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"{out}: unit step index {UNIT_STEP_INDEX}, steps {indices[0]}..{indices[-1]}, latent scale {scale:.4f}")
