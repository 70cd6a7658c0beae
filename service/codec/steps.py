"""The quantiser: one step for a whole picture, an index on a logarithmic scale.

``step = 2 ** ((index - 128) / 32)`` in units of the normalised latent: 256 steps over eight octaves, 2.2 % apart.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import numpy.typing as npt

STEP_COUNT = 256
STEPS_PER_OCTAVE = 32
UNIT_STEP_INDEX = 128
LARGEST_SYMBOL = 32767

Symbols = npt.NDArray[np.int32]
Latent = npt.NDArray[np.float32]

FIXED_BITS = 12


def _exact_powers(sign: int) -> npt.NDArray[np.int64]:
    """round(2**12 * 2**(sign * (index - 128) / 32)), by decimal arithmetic so that every machine has the same integers."""
    with localcontext() as context:
        context.prec = 40
        within = [Decimal(2) ** (Decimal(part) / STEPS_PER_OCTAVE) for part in range(STEPS_PER_OCTAVE)]  # a power takes a tenth of a ms
        octaves = (divmod(sign * (index - UNIT_STEP_INDEX), STEPS_PER_OCTAVE) for index in range(STEP_COUNT))
        return np.array(
            [int((within[part] * Decimal(2) ** (FIXED_BITS + octave)).to_integral_value()) for octave, part in octaves], np.int64
        )


STEP_FIXED = _exact_powers(+1)
"""step * 4096, for the entropy path"""
INVERSE_STEP_FIXED = _exact_powers(-1)
"""4096 / step, for the entropy path"""


def step_size(index: int) -> float:
    """The step as a float, for quantising and for the network; not used on the entropy path."""
    return float(2.0 ** ((index - UNIT_STEP_INDEX) / STEPS_PER_OCTAVE))


def nearest_step(size: float) -> int:
    """Index of the step nearest to a size."""
    index = round(UNIT_STEP_INDEX + STEPS_PER_OCTAVE * math.log2(max(size, 1e-9)))
    return min(max(index, 0), STEP_COUNT - 1)


def quantise(latent: Latent, index: int, offset: Latent | None = None) -> Symbols:
    """Normalised latent (any shape) to integers, rounded to nearest, clamped to 16 bits; ``offset``, in steps, moves the lattice."""
    in_steps = latent / np.float32(step_size(index))
    symbols = np.rint(in_steps if offset is None else in_steps - offset)
    clamped: Symbols = np.clip(symbols, -LARGEST_SYMBOL, LARGEST_SYMBOL).astype(np.int32)
    return clamped


def dequantise(symbols: Symbols, index: int, offset: Latent | None = None) -> Latent:
    """Integers to the centres of their cells, float32."""
    in_steps = symbols.astype(np.float32)
    return (in_steps if offset is None else in_steps + offset) * np.float32(step_size(index))


def dither(seed: int, shape: tuple[int, ...]) -> Latent:
    """Offsets for subtractive dither (Schuchman 1964): odd multiples of 1/512 between -1/2 and 1/2, the same on every machine.

    With them the error of the quantiser is uniform noise whatever the latent is, as a diffusion model expects.  The n-th, in C order, is
    made of the first byte of ``splitmix64(seed * 2**32 + n)`` (Steele, Lea and Flood 2014).

    Args:
        seed: 32 bits.
        shape: of the latent; fewer than 2**32 numbers.
    """
    state = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(seed << 32)
    state = (state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    top = (state >> np.uint64(56)).astype(np.float32)
    return ((top + np.float32(0.5)) / np.float32(256) - np.float32(0.5)).reshape(shape)
