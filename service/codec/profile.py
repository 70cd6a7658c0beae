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

    manifest: Manifest
    """of the model whose files it reads"""
    predictor: Predictor
    code_identity: bytes
    earlier: Profile | None = None
    """of the version that the model widens: its first groups"""


Tensors = dict[str, npt.NDArray[np.generic]]


def load_profile(folder: Path, manifest: Manifest) -> Profile:
    """Load the profile that ``manifest`` names; raises BadModel."""
    if manifest.entropy.file is None:
        return Profile(manifest, LaplacePredictor(manifest.latent_channels, laplace_counts()), _code_identity(manifest, None))
    path = folder / manifest.entropy.file
    try:
        tensors = load_file(path)
        predictor = context_predictor(tensors, manifest.latent_channels, tuple(manifest.entropy.coarsest))
        earlier = None
        if (before := manifest.earlier) is not None:
            groups = _groups_of(predictor.group_sizes, before.latent_channels)
            earlier = Profile(before, predictor.first(groups), _code_identity(before, _first(tensors, groups)))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadModel(f"{path} is no entropy profile: {error}") from error
    return Profile(manifest, predictor, _code_identity(manifest, tensors), earlier)


def _code_identity(manifest: Manifest, tensors: Tensors | None) -> bytes:
    """See docs/FORMAT.md; ``tensors`` are those of a ``context`` profile."""
    digest = hashlib.sha256(f"sdc code 1 {manifest.downscale} {manifest.latent_channels}".encode())
    digest.update(np.array([manifest.latent_mean, manifest.latent_std], "<f8").tobytes())
    if tensors is None:
        digest.update(b"laplace 1")
    for name, tensor in sorted((tensors or {}).items()):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(tensor).tobytes())
    if manifest.entropy.coarsest:
        digest.update(b"coarsest\0" + bytes(manifest.entropy.coarsest))
    return digest.digest()[:IDENTITY_BYTES]


def _groups_of(group_sizes: tuple[int, ...], channels: int) -> int:
    """How many groups the first ``channels`` are; raises ValueError where a group goes on beyond them."""
    ends = list(itertools.accumulate(group_sizes))
    if channels not in ends:
        raise ValueError(f"no group of {group_sizes} ends with the channels of the version that is widened, {channels}")
    return ends.index(channels) + 1


def _first(tensors: Tensors, groups: int) -> Tensors:
    """The tensors of a profile of the first groups alone."""
    kept = {name: tensor for name, tensor in tensors.items() if "." not in name or int(name.split(".")[0]) < groups * len(PHASES)}
    return kept | {"group_sizes": tensors["group_sizes"][:groups]}


def context_predictor(tensors: Tensors, channels: int, coarsest: tuple[int, ...] = ()) -> ContextPredictor:
    """Tensors as in docs/FORMAT.md to a predictor; raises KeyError or ValueError where they do not fit.

    ``coarsest`` is, of each group, the last step index that it is sent at; none given: any.
    """
    group_sizes = tuple(int(size) for size in tensors["group_sizes"].tolist())
    counts = tensors["counts"]
    if sum(group_sizes) != channels or min(group_sizes) < 1:
        raise ValueError(f"group_sizes {group_sizes} do not add up to {channels} channels")
    if coarsest and len(coarsest) != len(group_sizes):
        raise ValueError(f"coarsest {coarsest} names another number of groups than group_sizes {group_sizes}")
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
    return ContextPredictor(group_sizes, tuple(windows), passes, counts.astype(np.int32), coarsest=coarsest)


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
