"""Predicts, for each symbol, where it will lie and how widely it is spread, from symbols already coded.  Integers only.

Latent channels are coded in groups; within a group the four phases of a 2x2 lattice follow one another.  A pass (one group, one phase)
is predicted at once from all earlier groups and from the earlier phases of its own group, in a window of 5x5, 3x3 or, where only
the channels before say something, the place itself (see
``service.codec.lattice``).

The arithmetic is on integers, times a power of two, held in float64: every product and every partial sum stays under 2**53 of its unit,
so each is exact and the order of summation, which differs between BLAS libraries and processors, cannot change a bit.
``service.calibration.context`` is the float twin that is trained; the layout of the fixed point is described in docs/FORMAT.md.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.codec.lattice import PHASES, Exact, Seen, known_in_window
from service.codec.steps import FIXED_BITS, INVERSE_STEP_FIXED, STEP_COUNT, STEP_FIXED, STEPS_PER_OCTAVE, UNIT_STEP_INDEX
from service.codec.tables import HIGHEST_SCALE, LOWEST_SCALE, OFFSETS, SCALES_PER_OCTAVE, Counts

LATENT_BITS = 6
"""a known latent is seen as an integer in 64ths ..."""
LARGEST_LATENT = 4095
"""... of at most this size"""
WEIGHT_BITS = 10
HIDDEN_BITS = 8
LARGEST_HIDDEN = 1 << 16
LARGEST_MEAN = 1 << 14
WIDEST_SCALE = HIGHEST_SCALE + 8 * SCALES_PER_OCTAVE

NARROW = 16
"""so many channels a place are copied together and multiplied at once; more are multiplied where they lie"""

Integers = npt.NDArray[np.int32]


def visible(symbols: npt.NDArray[np.int32], step_index: int) -> Exact:
    """Dequantised symbols as a predictor sees them: 64ths of a unit, clamped."""
    fixed = np.floor(symbols.astype(np.float64) * float(STEP_FIXED[step_index]) / (1 << 6))
    return np.clip(fixed, -LARGEST_LATENT, LARGEST_LATENT)


class Predictor(Protocol):
    """What an entropy profile brings: the grouping of channels, a prediction for each pass, and the tables."""

    group_sizes: tuple[int, ...]
    windows: tuple[int, ...]
    """side of each group's window"""
    coarsest: tuple[int, ...]
    """the last step index that each group is sent at"""
    counts: Counts
    dtype: type[np.floating]
    """of what it is given: float64 where it is exact"""

    def rough(self) -> Predictor:
        """The same in float32 where that is faster: nearly the same prediction, to estimate a size by and never to code with."""
        ...

    def predict(self, seen: Seen, group: int, phase: int, step_index: int) -> tuple[Integers, Integers]:
        """Predict n positions of one pass.

        Args:
            seen: their known neighbours, integers as from ``visible``.
            group, phase: which pass.
            step_index: the picture's step.

        Returns:
            mean in eighths of a symbol, and scale index, both (n, group size) int32.
        """
        ...


class LaplacePredictor:
    """The profile that works for any VAE at once: mean 0, spread from the mean magnitude of known neighbours in the same channel."""

    PRIOR_WEIGHT = 2
    dtype: type[np.floating] = np.float64

    def __init__(self, channels: int, counts: Counts) -> None:
        self.group_sizes: tuple[int, ...] = (channels,)
        self.windows: tuple[int, ...] = (5,)
        self.coarsest: tuple[int, ...] = (STEP_COUNT - 1,)
        self.counts = counts
        # magnitude (64ths of a step, geometric grid) at which the scale index rises: integer thresholds, hence exact
        grid = range(LOWEST_SCALE, WIDEST_SCALE)
        self._thresholds = np.array([_spread_threshold(index) for index in grid], np.float64)

    def rough(self) -> LaplacePredictor:
        return self

    def predict(self, seen: Seen, group: int, phase: int, step_index: int) -> tuple[Integers, Integers]:
        magnitude = np.zeros((seen.size, self.group_sizes[0]))
        for place in seen.places:
            magnitude += np.abs(place)
        # Unit-variance latents: the prior says a mean magnitude of about 0.7, 45 in 64ths.
        known = len(seen.places)
        mean_magnitude = np.floor((seen.trim(magnitude) + self.PRIOR_WEIGHT * 45) / (known + self.PRIOR_WEIGHT))
        in_steps = np.floor(mean_magnitude * float(INVERSE_STEP_FIXED[step_index]) / (1 << 6))
        scale = np.searchsorted(self._thresholds, in_steps, side="right") + LOWEST_SCALE
        return np.zeros(scale.shape, np.int32), scale.astype(np.int32)


def _spread_threshold(scale_index: int) -> int:
    """Smallest mean magnitude, in 4096ths of a step, for which the next scale index is nearer; 2**(1/16) octave steps by integers."""
    # floor(4096 * 2**((2 * scale_index + 1) / 16)) as the largest n with n**16 <= 4096**16 * 2**(2 * scale_index + 1)
    target = (1 << 192) * 2 ** (2 * scale_index + 1) if scale_index >= 0 else (1 << 192) // 2 ** (-2 * scale_index - 1)
    low, high = 0, 1 << 26
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**16 <= target else (low, middle)
    return high


@dataclass(frozen=True)
class PassWeights:
    """One pass of the context network: the integers of docs/FORMAT.md, each layer divided by the power of two that its sum is shifted by.

    That is exact, and spares a multiplication of every sum.
    """

    window: Exact
    """(inputs, hidden): for each place of the window the channels known there, in the order of ``Seen.places``"""
    window_bias: Exact
    """(hidden,)"""
    window_step: Exact
    """(hidden,): for each step index above 128"""
    middle: Exact
    """(hidden, hidden)"""
    middle_bias: Exact
    """(hidden,)"""
    out: Exact
    """(hidden, 2 * group): means first (256ths of a unit of the latent), then scales (log2, in eighths)"""
    out_bias: Exact
    """(2 * group,)"""

    @classmethod
    def from_file(cls, tensors: dict[str, npt.NDArray[np.generic]], group_sizes: tuple[int, ...], index: int) -> PassWeights:
        """The tensors of docs/FORMAT.md for pass ``index``, without the rows whose input is 0 because nothing is known yet."""
        group, phase = divmod(index, len(PHASES))
        earlier, known = sum(group_sizes[:group]), sum(group_sizes[: group + 1])
        weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        window = weights["window"]
        by_place = window.reshape(known, -1, window.shape[1]).swapaxes(0, 1)
        places = known_in_window(math.isqrt(len(by_place)), phase)
        weights["window"] = np.concatenate([rows[: known if own else earlier] for rows, (*_, own) in zip(by_place, places, strict=True)])
        for name, weight in weights.items():
            weight *= 2.0 ** -(LATENT_BITS + WEIGHT_BITS - HIDDEN_BITS if name.startswith("window") else WEIGHT_BITS)
        for name in ("out", "out_bias"):
            weights[name][..., group_sizes[group] :] *= 2.0**-HIDDEN_BITS
        return cls(**weights)


class ContextPredictor:
    """A three-layer network for each pass: window, hidden, hidden, mean and scale."""

    def __init__(
        self,
        group_sizes: tuple[int, ...],
        windows: tuple[int, ...],
        passes: list[PassWeights],
        counts: Counts,
        dtype: type[np.floating] = np.float64,
        coarsest: tuple[int, ...] = (),
    ) -> None:
        self.group_sizes = group_sizes
        self.windows = windows
        self.coarsest = coarsest or (STEP_COUNT - 1,) * len(group_sizes)
        self.counts = counts
        self.dtype = dtype
        self._passes = passes

    def first(self, groups: int) -> ContextPredictor:
        """Of the first groups alone, which do not know of the others; sent at any step."""
        passes = self._passes[: groups * len(PHASES)]
        return ContextPredictor(self.group_sizes[:groups], self.windows[:groups], passes, self.counts, self.dtype)

    def rough(self) -> ContextPredictor:
        passes = [PassWeights(*(tensor.astype(np.float32) for tensor in astuple(item))) for item in self._passes]
        return ContextPredictor(self.group_sizes, self.windows, passes, self.counts, np.float32, self.coarsest)

    def predict(self, seen: Seen, group: int, phase: int, step_index: int) -> tuple[Integers, Integers]:
        weights = self._passes[group * len(PHASES) + phase]
        above = float(step_index - UNIT_STEP_INDEX)
        total = seen.trim(_product(seen, weights.window))
        hidden = _rectify(total, weights.window_bias + above * weights.window_step)
        hidden = _rectify(hidden @ weights.middle, weights.middle_bias)
        out = hidden @ weights.out
        bias, size = weights.out_bias.copy(), self.group_sizes[group]
        bias[size:] += 0.5 - float(np.floor(above * SCALES_PER_OCTAVE / STEPS_PER_OCTAVE + 0.5))
        out += bias
        np.floor(out, out=out)
        mean, scale = out[:, :size], out[:, size:]
        np.clip(mean, -LARGEST_MEAN, LARGEST_MEAN, out=mean)
        # eighths of a symbol: mean / 256 / step * 8, rounded
        mean *= float(INVERSE_STEP_FIXED[step_index]) * OFFSETS / (1 << HIDDEN_BITS + FIXED_BITS)
        mean += 0.5
        np.floor(mean, out=mean)
        np.clip(scale, LOWEST_SCALE, WIDEST_SCALE, out=scale)
        integers = out.astype(np.int32)
        return integers[:, :size], integers[:, size:]


def _product(seen: Seen, window: Exact) -> Exact:
    """(n', hidden): all known neighbours of each position times the weights of their place."""
    if seen.earlier <= NARROW and seen.places:
        return np.concatenate(seen.places, axis=1) @ window
    total, part = np.zeros((2, seen.size, window.shape[1]), window.dtype)
    start = 0
    for place in seen.places:
        end = start + place.shape[1]
        total += np.matmul(place, window[start:end], out=part)
        start = end
    return total


def _rectify(total: Exact, bias: Exact) -> Exact:
    """floor(total + bias), no less than 0; in place."""
    total += bias
    np.floor(total, out=total)
    return np.clip(total, 0, LARGEST_HIDDEN, out=total)
