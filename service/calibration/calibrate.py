"""A model and photographs to the same model with an entropy profile of its own.

The latents, the networks, what is sent of a picture at each step, and so the pictures stay what they are; the files get smaller.  It is
another model to the service: a file is read with the tables it was written with.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors.numpy import save_file

from service.calibration.fitting import Fitted, fit, mean_bytes
from service.calibration.tables import Latents
from service.codec.entropy import EntropyCoder
from service.codec.profile import load_profile
from service.engine.engine import Engine
from service.errors import BadModel, BadParameter, SdcError
from service.folders import alone, written_whole
from service.imaging.opening import open_picture, photographs
from service.manifest import NAME, Manifest

SIDE = 256
"""pixels of a crop"""
HELD_OUT = 5
"""one picture in so many, by its name, is kept to judge by"""
LARGEST = 1 << 27
"""pixels of a picture; larger ones are left out"""
TOGETHER = 4
PROFILE = "entropy.safetensors"

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Gain:
    """What the files of held-out crops take at one step, in bytes."""

    index: int
    before: float
    after: float


def calibrate(engine: Engine, images: Path, target: Path, minutes: float, crops: int, told: Callable[[str, float], None]) -> list[Gain]:
    """Fit a profile and write the model folder ``target``; its networks are linked where the file system can, else copied.

    Args:
        engine: of the model.
        images: folder of photographs, at least two of 256 pixels a side.
        target: must not exist; its name becomes the model's.
        minutes: for training the profile.
        crops: to train it on.
        told: is given what is being done, and the share of it that is.

    Raises BadModel and BadParameter, the latter also where nothing was gained: nothing is written then.
    """
    if not NAME.fullmatch(target.name) or target.exists():
        raise BadModel(f"'{target.name}' is installed already, or no name of a model: give another one")
    manifest = engine.manifest
    if SIDE % manifest.downscale or SIDE // manifest.downscale % 2:
        raise BadModel(f"crops of {SIDE} pixels do not fit a latent at 1/{manifest.downscale}")
    judged, trained = _encoded(engine, images, crops, told)
    points = manifest.rate_points
    indices = list(range(min(points.quality_100, points.quality_0), max(points.quality_100, points.quality_0) + 1))
    predictor, coarsest = load_profile(engine.folder, manifest).predictor, tuple(manifest.entropy.coarsest)
    sizes = list(predictor.group_sizes) if coarsest else None  # groups that are not always sent stay groups
    fitted = fit(trained, indices, SIDE**2, minutes, lambda share: told("fitting", share), sizes=sizes, coarsest=coarsest)
    before = EntropyCoder(predictor)
    gains = []
    for number, quality in enumerate((10, 30, 50, 70, 90)):
        index = points.step_index(quality)
        gains.append(Gain(index, mean_bytes(before, judged, index), mean_bytes(fitted.coder, judged, index)))
        told("judging", (number + 1) / 5)
    if sum(gain.after for gain in gains) >= sum(gain.before for gain in gains):
        raise BadParameter("nothing was gained on the pictures held out: give more photographs, or more minutes.  Nothing was installed")
    with alone(target.parent, lambda: told("waiting for another command, which is installing a model", 0.0)):
        _write(engine.folder, manifest, fitted, target)
    return gains


def _encoded(engine: Engine, images: Path, crops: int, told: Callable[[str, float], None]) -> tuple[Latents, Latents]:
    """Normalised latents of crops: of the pictures held out, and of the others."""
    pictures = photographs(images)
    judged: list[Latents] = []
    trained: list[Latents] = []
    for number, path in enumerate(pictures):
        told("encoding", number / len(pictures))
        rng = random.Random(path.name)
        try:
            pixels = open_picture(path.read_bytes(), LARGEST).rgb
        except SdcError:  # a folder holds all sorts of things
            continue
        if min(pixels.shape[:2]) < SIDE:
            continue
        found = [_crop(pixels, rng) for _ in range(max(1, -(-crops // len(pictures))))]
        latents = [engine.encode(np.stack(found[start : start + TOGETHER])) for start in range(0, len(found), TOGETHER)]
        held = int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % HELD_OUT == 0
        (judged if held else trained).append(np.concatenate(latents))
    told("encoding", 1.0)
    if not judged and len(trained) > 1:
        judged.append(trained.pop())
    if not trained and len(judged) > 1:
        trained.append(judged.pop())
    if not judged or not trained:
        raise BadParameter(f"{images} must hold at least two photographs of {SIDE} pixels a side, better hundreds")
    return np.concatenate(judged), np.concatenate(trained)


def _crop(pixels: Pixels, rng: random.Random) -> Pixels:
    """A random window, half the time of the picture at half its size: the larger one's grain is not everybody's."""
    if min(pixels.shape[:2]) >= 2 * SIDE and rng.random() < 0.5:
        height, width = pixels.shape[:2]
        pixels = np.asarray(Image.fromarray(pixels).resize((width // 2, height // 2), Image.Resampling.LANCZOS))
    top, left = rng.randint(0, pixels.shape[0] - SIDE), rng.randint(0, pixels.shape[1] - SIDE)
    return pixels[top : top + SIDE, left : left + SIDE]


def _write(folder: Path, manifest: Manifest, fitted: Fitted, target: Path) -> None:
    entropy = {"kind": "context", "file": PROFILE, "coarsest": manifest.entropy.coarsest}
    told = manifest.model_dump() | {"name": target.name, "entropy": entropy, "widens": None}
    if fitted.rate_guess:
        told["rate_guess"] = fitted.rate_guess
    with written_whole(target) as staged:
        shutil.copytree(folder, staged, copy_function=_link, ignore=shutil.ignore_patterns("sdc.json", PROFILE, "*.md"))
        save_file(fitted.tensors, staged / PROFILE)
        (staged / "sdc.json").write_text(json.dumps(told, indent=2) + "\n")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
