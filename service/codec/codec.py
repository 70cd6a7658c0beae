"""One model's codec: latents to blobs and back, at a step or within a size.

latent (C, h, w) float32, normalised --encode--> Blob --decode--> latent (C, h, w) float32, on the lattice
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.codec import container, ground, palette
from service.codec.container import WHOLE_SCALE, Blob, Tiling, scaled
from service.codec.entropy import EntropyCoder
from service.codec.ground import Ground, Mask
from service.codec.methods import LATENT, METHODS, PALETTE
from service.codec.profile import load_profile
from service.codec.scaling import first_scale, next_scale
from service.codec.steps import (
    STEP_COUNT,
    STEPS_PER_OCTAVE,
    UNIT_STEP_INDEX,
    Latent,
    Symbols,
    dequantise,
    dither,
    nearest_step,
    quantise,
)
from service.errors import CorruptBlob, MethodUnavailable, SizeUnreachable, WrongModel
from service.manifest import Manifest

NEAR = 4
"""an estimate so many steps away is near enough to code by"""
MOST_ESTIMATES = 3
MOST_GUESSES = 5
"""after so many codings the search bisects"""
SMALLEST_SIZE, LARGEST_SIZE = -STEPS_PER_OCTAVE * 8, STEP_COUNT + STEPS_PER_OCTAVE * 8
"""sizes of latents are told apart between these step indices"""


@dataclass(frozen=True)
class Frame:
    """Everything of a blob but the latent's code."""

    width: int
    height: int
    alpha: bytes | None = None
    tiling: Tiling | None = None
    seed: int | None = None
    """of subtractive dither, 32 bits; None for none"""
    scale: int = WHOLE_SCALE
    """sixteenths of the picture's sides at which it is coded"""
    ground: Ground | None = None
    """where the picture is flat; not with dither"""
    grey: bool = False
    """whether it has no colours"""

    @property
    def coded_size(self) -> tuple[int, int]:
        """Width and height in pixels of what the latent stands for."""
        return scaled(self.width, self.height, self.scale)


@cache
def _bits_by_size() -> npt.NDArray[np.float64]:
    """(256, sizes): log2(1 + 2 size / step), for each step index and each size that is told apart."""
    above = (np.arange(SMALLEST_SIZE, LARGEST_SIZE + 1)[None, :] - np.arange(STEP_COUNT)[:, None]) / STEPS_PER_OCTAVE
    bits: npt.NDArray[np.float64] = np.log2(1 + 2.0 ** (above + 1))
    return bits


def rate_shape(latent: Latent) -> npt.NDArray[np.float64]:
    """How the rate of a latent falls with the step index: (256,), positive and falling.  Floats, for searching only.

    The mean of log2(1 + 2 |z| / step) over the largest latent of each 2x2 block, from a histogram of log2 |z| as fine as the steps are.
    The largest, because a context model sends for next to nothing what is small beside small neighbours: this predicts a size twice as
    well as the mean over all latents (9 % against 17 %, standard deviation over pictures).
    """
    size = np.abs(np.pad(latent, ((0, 0), (0, latent.shape[1] % 2), (0, latent.shape[2] % 2))))
    rows = np.maximum(size[:, ::2], size[:, 1::2])
    largest = np.maximum(rows[:, :, ::2], rows[:, :, 1::2])
    fine = STEPS_PER_OCTAVE * np.log2(largest + np.float32(1e-5)) + UNIT_STEP_INDEX
    told = np.clip(np.rint(fine), SMALLEST_SIZE, LARGEST_SIZE).astype(np.int64).ravel() - SMALLEST_SIZE
    shape: npt.NDArray[np.float64] = _bits_by_size() @ np.bincount(told, minlength=LARGEST_SIZE - SMALLEST_SIZE + 1) / largest.size
    return shape


def _through(sizes: dict[int, int], shape: npt.NDArray[np.float64], slope: float, budget: int) -> npt.NDArray[np.float64]:
    """Size predicted for each step index: a power law of ``shape`` through the known size nearest the budget and one further off.

    ``slope`` is that of the law where no other size is known.
    """
    first, *others = sorted(sizes, key=lambda index: abs(np.log(sizes[index] / budget)))
    for other in others:
        if abs(other - first) >= 4:  # nearer ones say more about rounding than about the picture
            slope = float(np.clip(np.log(sizes[first] / sizes[other]) / np.log(shape[first] / shape[other]), 0.5, 3))
            break
    law: npt.NDArray[np.float64] = sizes[first] * (shape / shape[first]) ** slope
    return law


def _finest(predicted: npt.NDArray[np.float64], budget: int) -> int:
    """The finest step whose predicted size is within the budget, or the coarsest of all."""
    return min(int(np.searchsorted(-predicted, -budget)), STEP_COUNT - 1)


class Codec:
    """The codec of one model folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        profile = load_profile(folder, manifest)
        self.manifest = manifest
        self.code_identity = profile.code_identity
        self.model_identity = manifest.model_identity
        self.entropy = EntropyCoder(profile.predictor)
        profiles = [profile] if profile.earlier is None else [profile, profile.earlier]
        self._predictors = {each.code_identity: each.predictor for each in profiles}
        self.reads = {each.manifest.model_identity: each.manifest.full_name for each in profiles}
        """whose files, by model identity: its own first and, where there is one, those of the version which it widens"""
        self._older_coders: dict[tuple[bytes, bool], EntropyCoder] = {}

    def _coder(self, blob: Blob) -> EntropyCoder:
        """That which a blob was written by; of older versions, of the format or the model, made when one comes."""
        which = blob.code_identity, blob.version > 1
        if which == (self.code_identity, True):
            return self.entropy
        if which not in self._older_coders:
            self._older_coders[which] = EntropyCoder(self._predictors[blob.code_identity], short_tables=which[1])
        return self._older_coders[which]

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture: its size in latent positions, rounded up."""
        factor = self.manifest.downscale
        return self.manifest.latent_channels, -(-height // factor), -(-width // factor)

    def encode(self, latent: Latent, frame: Frame, step_index: int) -> Blob:
        """Quantise with this step and code."""
        return self._encoded(_smoothed(latent, frame), frame, step_index, _offset(frame.seed, latent.shape))

    def _encoded(self, latent: Latent, frame: Frame, step_index: int, offset: Latent | None) -> Blob:
        symbols = self.quantise(latent, step_index, offset)
        return self._blob(frame, step_index, self.entropy.encode(symbols, step_index, _inside(frame.ground)))

    def _estimated(self, latent: Latent, frame: Frame, step_index: int, offset: Latent | None) -> int:
        """Bytes that the latent's code takes at this step, at least 1."""
        symbols = self.quantise(latent, step_index, offset)
        return max(1, round(self.entropy.estimated_bits(symbols, step_index, _inside(frame.ground)) / 8))

    def quantise(self, latent: Latent, step_index: int, offset: Latent | None = None) -> Symbols:
        """Normalised latent (C, h, w) to the integers that are sent of it: 0 in channels that are not sent at this step."""
        symbols = quantise(latent, step_index, offset)
        symbols[~self.entropy.sent(step_index)] = 0
        return symbols

    def encode_palette(self, latent: Latent, frame: Frame, max_bytes: int | None = None) -> Blob:
        """Code as the article does, at the one size that gives; the step told is that of a uniform quantiser with the same error.

        Raises MethodUnavailable where the latent has not four channels, SizeUnreachable where the file is larger than ``max_bytes``.
        """
        self.require_palette()
        payload = palette.encode(latent)
        error = float(np.mean((palette.decode(payload, *latent.shape[1:]) - latent) ** 2, dtype=np.float64))
        blob = self._blob(frame, nearest_step(math.sqrt(12 * error)), payload, PALETTE)
        size = len(container.write(blob))
        if max_bytes is not None and size > max_bytes:
            raise SizeUnreachable(
                f"max_bytes={max_bytes} cannot be met: as a palette this picture has {size} bytes, no more and no less", size
            )
        return blob

    @property
    def has_palette(self) -> bool:
        """Whether this model's latent can be a palette."""
        return self.manifest.latent_channels == palette.CHANNELS

    def require_palette(self) -> None:
        """Raise MethodUnavailable unless this model's latent can be a palette."""
        if not self.has_palette:
            raise MethodUnavailable(
                f"the article's methods are for latents of {palette.CHANNELS} channels; those of model '{self.manifest.name}' have "
                f"{self.manifest.latent_channels}: leave the parameter out, or serve a Stable Diffusion checkpoint"
            )

    def encode_within(self, latent: Latent, frame: Frame, max_bytes: int) -> Blob:
        """The finest step, as far as the search can tell, whose whole file, header included, has at most ``max_bytes``.

        The network has already run; an estimate or two and a coding settle it.  A step one index finer is only tried where it is
        predicted to fit.  Raises SizeUnreachable, with the size at the coarsest step, when even that is too large; of tiny pictures one of
        the steps before may take a few bytes less, and is not looked for.
        """
        budget = self._budget(frame, max_bytes)
        offset = _offset(frame.seed, latent.shape)
        latent = _smoothed(latent, frame)
        shape = rate_shape(latent)
        guess = self.manifest.rate_guess
        predicted = self._guessed(latent, shape)
        sizes: dict[int, int] = {}
        while len(sizes) < MOST_ESTIMATES:
            index = _finest(predicted, budget)
            if any(abs(index - known) <= NEAR for known in sizes):
                break
            sizes[index] = self._estimated(latent, frame, index, offset)
            predicted = _through(sizes, shape, guess.slope, budget)
        low, high = -1, STEP_COUNT  # low is too large; high fits, as the blob called best
        best: Blob | None = None
        for attempt in itertools.count():
            index = _finest(predicted, budget) if attempt < MOST_GUESSES else (low + high) // 2
            if best and attempt < MOST_GUESSES and index >= high and predicted[high - 1] > budget:
                break
            index = min(max(index, low + 1), high - 1)
            blob = self._encoded(latent, frame, index, offset)
            size = len(container.write(blob))
            sizes[index] = max(1, len(blob.sections[container.LATENT]))
            if size <= max_bytes:
                high, best = index, blob
            else:
                low = index
            if high - low <= 1:
                break
            predicted = _through(sizes, shape, guess.slope, budget)
        if best is None:
            raise SizeUnreachable(
                f"max_bytes={max_bytes} cannot be met: at the coarsest step this picture has {size} bytes", best_bytes=size
            )
        return best

    def first_scale(self, width: int, height: int, max_bytes: int) -> int:
        """The scale to begin with for a picture of this size that shall have at most ``max_bytes``."""
        return WHOLE_SCALE if self.manifest.scaling is None else first_scale(width, height, max_bytes)

    def better_scale(self, latent: Latent, frame: Frame, max_bytes: int) -> int:
        """The scale at which the picture had better be coded, to have at most ``max_bytes``: that of ``frame``, or a smaller one.

        By the step that the latent is guessed to need; nothing is coded.
        """
        if self.manifest.scaling is None:
            return frame.scale
        return self.smaller_scale(frame, _finest(self._guessed(latent, rate_shape(latent)), self._budget(frame, max_bytes)))

    def smaller_scale(self, frame: Frame, step_index: int = STEP_COUNT - 1) -> int:
        """The scale to go on with where this step is needed, by default one coarser than all; else that of ``frame``."""
        if self.manifest.scaling is None:
            return frame.scale
        return next_scale(frame.width, frame.height, frame.scale, step_index, self.manifest.scaling)

    def _budget(self, frame: Frame, max_bytes: int) -> int:
        """Bytes that are left to the latent's code, at least 1."""
        return max(1, max_bytes - len(container.write(self._blob(frame, 0, b""))))

    def _guessed(self, latent: Latent, shape: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(256,) bytes of the latent's code at each step index, before any was measured."""
        guess = self.manifest.rate_guess
        predicted: npt.NDArray[np.float64] = latent.size / 8 * guess.rate * shape**guess.slope
        return predicted

    def decode(self, blob: Blob) -> Latent:
        """Blob to dequantised latent; raises WrongModel or CorruptBlob."""
        return self.decode_all(blob)[0]

    def decode_all(self, blob: Blob) -> tuple[Latent, Ground | None]:
        """``decode``, and the picture's flat ground where it has one."""
        self.check(blob)
        if blob.method == PALETTE:
            return palette.decode(blob.sections[container.LATENT], *self.latent_shape(*blob.coded_size)[1:]), None
        flat = self._ground(blob)
        symbols = self._symbols(blob, flat)
        offset = _offset(blob.seed, symbols.shape)
        if offset is not None:  # it would be all there is where nothing was sent
            sent = self._coder(blob).sent(blob.step_index)
            offset[~np.pad(sent, (0, len(offset) - len(sent)))] = 0
        return dequantise(symbols, blob.step_index, offset), flat

    def decode_symbols(self, blob: Blob) -> Symbols:
        """Blob of method ``latent`` to the integers that were coded, (C, h, w): exactly the same on every machine.

        Channels that were not sent, because of the step or because an earlier version of the model had not got them, are 0.
        """
        self.check(blob)
        return self._symbols(blob, self._ground(blob))

    def _ground(self, blob: Blob) -> Ground | None:
        height, width = self.latent_shape(*blob.coded_size)[1:]
        if container.GROUND in blob.sections:
            return ground.read(blob.sections[container.GROUND], height, width)
        bare = blob.sections.get(container.BARE_GROUND)
        return None if bare is None else Ground(ground.read_mask(bare, height, width), None)

    def _symbols(self, blob: Blob, flat: Ground | None) -> Symbols:
        channels, *grid = self.latent_shape(*blob.coded_size)
        coder = self._coder(blob)
        symbols = coder.decode(blob.sections[container.LATENT], (coder.channels, grid[0], grid[1]), blob.step_index, _inside(flat))
        return symbols if coder.channels == channels else np.pad(symbols, ((0, channels - coder.channels), (0, 0), (0, 0)))

    def check(self, blob: Blob) -> None:
        """Raise unless this codec can read the blob."""
        if blob.method not in METHODS:
            raise CorruptBlob(f"unknown method {blob.method}")
        if (blob.method == PALETTE or blob.seed is not None) and {container.GROUND, container.BARE_GROUND} & blob.sections.keys():
            raise CorruptBlob("no palette and no dithered file is written with a flat ground")
        if blob.method == PALETTE and (not self.has_palette or blob.seed is not None or blob.scale != WHOLE_SCALE):
            raise CorruptBlob("no palette of this model is written like this")
        if blob.code_identity not in self._predictors:
            raise WrongModel(
                f"this file needs the entropy profile {blob.code_identity.hex()}; model '{self.manifest.name}' has "
                f"{self.code_identity.hex()}: install the model the file was made with"
            )

    def _blob(self, frame: Frame, step_index: int, payload: bytes, method: int = LATENT) -> Blob:
        sections = {container.LATENT: payload}
        if frame.ground is not None:
            sections[container.GROUND] = ground.write(frame.ground)
        if frame.alpha is not None:
            sections[container.ALPHA] = frame.alpha
        return Blob(
            self.code_identity, self.model_identity, frame.width, frame.height,
            method, step_index, sections, frame.tiling, frame.seed, frame.scale, frame.grey,
        )  # fmt: skip


def _smoothed(latent: Latent, frame: Frame) -> Latent:
    """The latent, the positions inside its flat ground all of them like their median."""
    inside = _inside(frame.ground)
    if inside is None:
        return latent
    smoothed = latent.copy()
    smoothed[:, inside] = np.median(latent[:, inside], axis=1, keepdims=True)
    return smoothed


def _inside(flat: Ground | None) -> Mask | None:
    return None if flat is None else flat.inside


def _offset(seed: int | None, shape: tuple[int, ...]) -> Latent | None:
    return None if seed is None else dither(seed, shape)
