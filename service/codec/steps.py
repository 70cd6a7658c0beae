"""The quantiser: one step for a whole picture, an index on a logarithmic scale.

``step = 2 ** ((index - 128) / 32)`` in units of the normalised latent: 256 steps over eight octaves, 2.2 % apart.
"""

from __future__ import annotations

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
        scale = Decimal(1 << FIXED_BITS)
        exponents = (Decimal(sign * (index - UNIT_STEP_INDEX)) / STEPS_PER_OCTAVE for index in range(STEP_COUNT))
        return np.array([int((scale * Decimal(2) ** e).to_integral_value()) for e in exponents], np.int64)


STEP_FIXED = _exact_powers(+1)
"""step * 4096, for the entropy path"""
INVERSE_STEP_FIXED = _exact_powers(-1)
"""4096 / step, for the entropy path"""


def step_size(index: int) -> float:
    """The step as a float, for quantising and for the network; not used on the entropy path."""
    return float(2.0 ** ((index - UNIT_STEP_INDEX) / STEPS_PER_OCTAVE))


def quantise(latent: Latent, index: int) -> Symbols:
    """Normalised latent (any shape) to integers, rounded to nearest, clamped to 16 bits."""
    symbols = np.rint(latent / np.float32(step_size(index)))
    clamped: Symbols = np.clip(symbols, -LARGEST_SYMBOL, LARGEST_SYMBOL).astype(np.int32)
    return clamped


def dequantise(symbols: Symbols, index: int) -> Latent:
    """Integers to the centres of their cells, float32."""
    return symbols.astype(np.float32) * np.float32(step_size(index))
