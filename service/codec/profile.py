"""Loads a model's entropy profile and names it: the code identity says which integers a blob can be read with."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from service.codec.context import (
    LARGEST_HIDDEN,
    LARGEST_LATENT,
    ContextPredictor,
    LaplacePredictor,
    PassWeights,
    Predictor,
)
from service.codec.lattice import PHASES, WINDOWS
from service.codec.steps import STEP_COUNT
from service.codec.tables import ALPHABET, OFFSETS, SCALE_COUNT, TOTAL, laplace_counts
from service.errors import BadModel
from service.manifest import IDENTITY_BYTES, Manifest

PASS_TENSORS = ("window", "window_bias", "window_step", "middle", "middle_bias", "out", "out_bias")


@dataclass(frozen=True)
class Profile:
    """A predictor with its tables, and the identity of everything the integers depend on."""

    predictor: Predictor
    code_identity: bytes


def load_profile(folder: Path, manifest: Manifest) -> Profile:
    """Load the profile that ``manifest`` names; raises BadModel."""
    digest = hashlib.sha256(f"sdc code 1 {manifest.downscale} {manifest.latent_channels}".encode())
    digest.update(np.array([manifest.latent_mean, manifest.latent_std], "<f8").tobytes())
    predictor: Predictor
    if manifest.entropy.file is None:
        predictor = LaplacePredictor(manifest.latent_channels, laplace_counts())
        digest.update(b"laplace 1")
    else:
        path = folder / manifest.entropy.file
        try:
            tensors = load_file(path)
            predictor = context_predictor(tensors, manifest.latent_channels)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BadModel(f"{path} is no entropy profile: {error}") from error
        for name in sorted(tensors):
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(tensors[name]).tobytes())
    return Profile(predictor, digest.digest()[:IDENTITY_BYTES])


def context_predictor(tensors: dict[str, npt.NDArray[np.generic]], channels: int) -> ContextPredictor:
    """Tensors as in docs/FORMAT.md to a predictor; raises KeyError or ValueError where they do not fit."""
    group_sizes = tuple(int(size) for size in tensors["group_sizes"].tolist())
    counts = tensors["counts"]
    if sum(group_sizes) != channels or min(group_sizes) < 1:
        raise ValueError(f"group_sizes {group_sizes} do not add up to {channels} channels")
    if counts.dtype != np.int32 or counts.shape != (SCALE_COUNT, OFFSETS, ALPHABET) or counts.min() < 1 or (counts.sum(-1) != TOTAL).any():
        raise ValueError("counts must be positive and sum to 65536 in every table")
    passes, windows = [], []
    for group, known in enumerate(itertools.accumulate(group_sizes)):
        side = math.isqrt(tensors[f"{group * len(PHASES)}.window"].shape[0] // known)
        if side not in WINDOWS:
            raise ValueError(f"group {group}: a window of {side}x{side}, not one of {WINDOWS}")
        windows.append(side)
        for phase in range(len(PHASES)):
            index = group * len(PHASES) + phase
            parts = {name: tensors[f"{index}.{name}"] for name in PASS_TENSORS}
            _check_pass(index, parts, known * side**2, group_sizes[group])
            passes.append(PassWeights.from_file(parts, group_sizes, index))
    return ContextPredictor(group_sizes, tuple(windows), passes, counts.astype(np.int32))


def _check_pass(index: int, parts: dict[str, npt.NDArray[np.generic]], inputs: int, group: int) -> None:
    """Shapes, number formats, and that no sum can leave the integers a float64 holds exactly; raises ValueError."""
    hidden = parts["window_bias"].size
    shapes = {
        "window": (inputs, hidden), "window_bias": (hidden,), "window_step": (hidden,),
        "middle": (hidden, hidden), "middle_bias": (hidden,), "out": (hidden, 2 * group), "out_bias": (2 * group,),
    }  # fmt: skip
    for name, shape in shapes.items():
        wanted = np.int16 if len(shape) == 2 else np.int32
        if parts[name].shape != shape or parts[name].dtype != wanted:
            raise ValueError(f"pass {index}: {name} must be {np.dtype(wanted)} of shape {shape}")
    # int16 weights, int32 biases and step weights, inputs as clamped by the predictor
    largest_input = max(inputs * LARGEST_LATENT, hidden * LARGEST_HIDDEN)
    if largest_input * 2**15 + 2**31 * (1 + STEP_COUNT) >= 2**53:
        raise ValueError(f"pass {index}: a layer this wide could leave the integers that are exact")
