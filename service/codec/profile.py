"""Loads a model's entropy profile and names it: the code identity says which integers a blob can be read with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from service.codec.container import IDENTITY_BYTES, VERSION
from service.codec.context import PHASES, WINDOW, ContextPredictor, LaplacePredictor, PassWeights, Predictor
from service.codec.tables import ALPHABET, OFFSETS, SCALE_COUNT, TOTAL, laplace_counts
from service.errors import BadModel
from service.manifest import Manifest

PASS_TENSORS = ("window", "window_bias", "window_step", "middle", "middle_bias", "out", "out_bias")


@dataclass(frozen=True)
class Profile:
    """A predictor with its tables, and the identity of everything the integers depend on."""

    predictor: Predictor
    code_identity: bytes


def load_profile(folder: Path, manifest: Manifest) -> Profile:
    """Load the profile that ``manifest`` names; raises BadModel."""
    digest = hashlib.sha256(f"sdc code {VERSION} {manifest.downscale} {manifest.latent_channels}".encode())
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
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise BadModel(f"{path} is no entropy profile: {error}") from error
        for name in sorted(tensors):
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(tensors[name]).tobytes())
    return Profile(predictor, digest.digest()[:IDENTITY_BYTES])


def context_predictor(tensors: dict[str, npt.NDArray[np.generic]], channels: int) -> ContextPredictor:
    """Tensors as in docs/FORMAT.md to a predictor; raises KeyError or ValueError where they do not fit."""
    group_sizes = tuple(int(size) for size in tensors["group_sizes"].tolist())
    counts = tensors["counts"].astype(np.int32)
    if sum(group_sizes) != channels or min(group_sizes) < 1:
        raise ValueError(f"group_sizes {group_sizes} do not add up to {channels} channels")
    if counts.shape != (SCALE_COUNT, OFFSETS, ALPHABET) or counts.min() < 1 or (counts.sum(-1) != TOTAL).any():
        raise ValueError("counts must be positive and sum to 65536 in every table")
    passes = []
    for index in range(len(group_sizes) * len(PHASES)):
        parts = {name: tensors[f"{index}.{name}"] for name in PASS_TENSORS}
        if any(part.dtype.kind != "i" for part in parts.values()):
            raise ValueError("weights must be integers")
        known = sum(group_sizes[: index // len(PHASES) + 1])
        if parts["window"].shape[0] != known * WINDOW**2:
            raise ValueError(f"pass {index}: the window must see {known} channels")
        passes.append(PassWeights(**{name: part.astype(np.float64) for name, part in parts.items()}))
    return ContextPredictor(group_sizes, passes, counts)
