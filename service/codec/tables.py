"""Frequency tables: integer counts for every scale and every eighth of a symbol the mean may be off centre.

A table covers symbols -24..24 around the predicted mean and one escape; those of small spreads are cut short.  Counts of a table sum to
2**16, so that count / 2**16 is an exact float and every machine hands the same probabilities to the range coder.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
import numpy.typing as npt

REACH = 24
ESCAPE = 2 * REACH + 1
ALPHABET = 2 * REACH + 2
TOTAL = 1 << 16
SCALES_PER_OCTAVE = 8
LOWEST_SCALE = -32
"""scale index s means a spread of 2 ** (s / 8) symbols; one table each from here ..."""
HIGHEST_SCALE = 8
"""... to here; wider distributions send their low bits plain (see ``service.codec.entropy``)"""
SCALE_COUNT = HIGHEST_SCALE - LOWEST_SCALE + 1
OFFSETS = 8

SHORT_REACH = 6
SHORT_SCALES = 24
"""the tables of so many smallest spreads are cut to -6..6 and an escape: nearly all symbols of a picture meet one of these, none of
them lies beyond once in ten thousand, and a table of 14 is looked up and searched in half the time of one of 50"""
SHORT_TABLES = SHORT_SCALES * OFFSETS

Counts = npt.NDArray[np.int32]
"""(SCALE_COUNT, OFFSETS, ALPHABET)"""


def counts_from_weights(weights: list[int]) -> list[int]:
    """Non-negative integer weights of an alphabet to counts, each at least 1, that sum to 2**16.  Integer arithmetic throughout."""
    whole = sum(weights)
    free = TOTAL - len(weights)
    counts = [1 + weight * free // whole for weight in weights]
    counts[max(range(len(counts)), key=counts.__getitem__)] += TOTAL - sum(counts)
    return counts


def short_counts(counts: Counts) -> Counts:
    """The short tables, (SHORT_SCALES, OFFSETS, 14): the middle of each whole one, and an escape that has all the rest."""
    whole = counts[:SHORT_SCALES]
    middle = whole[..., REACH - SHORT_REACH : REACH + SHORT_REACH + 1]
    return np.concatenate([middle, (TOTAL - middle.sum(-1, keepdims=True)).astype(np.int32)], axis=-1)


@cache
def laplace_counts() -> Counts:
    """Tables of a Laplacian whose mean absolute deviation is the scale, plus a twentieth of a symbol.

    Computed with decimal arithmetic of fixed precision, hence the same on every machine.
    """
    with localcontext() as context:
        context.prec = 28
        half = Decimal("0.5")

        def below(distance: Decimal, scale: Decimal) -> Decimal:
            tail = half * (-abs(distance) / scale).exp()
            return tail if distance < 0 else 1 - tail

        return _tables(below)


@cache
def logistic_counts() -> Counts:
    """Tables of a logistic of that scale, plus a twentieth of a symbol: what the bundled context model is trained with."""
    with localcontext() as context:
        context.prec = 28

        def below(distance: Decimal, scale: Decimal) -> Decimal:
            tail = 1 / (1 + (abs(distance) / scale).exp())
            return tail if distance < 0 else 1 - tail

        return _tables(below)


def _tables(below: Callable[[Decimal, Decimal], Decimal]) -> Counts:
    """Tables from a cumulative distribution function of (distance from the mean, scale), both in symbols."""
    counts = np.zeros((SCALE_COUNT, OFFSETS, ALPHABET), np.int32)
    unit = Decimal(1 << 40)
    for row in range(SCALE_COUNT):
        scale = Decimal(2) ** (Decimal(row + LOWEST_SCALE) / SCALES_PER_OCTAVE) + Decimal("0.05")
        for offset in range(OFFSETS):
            mean = Decimal(offset) / OFFSETS
            edges = [below(Decimal(2 * k - 1) / 2 - mean, scale) for k in range(-REACH, REACH + 2)]
            inside = [int((high - low) * unit) for low, high in itertools.pairwise(edges)]
            counts[row, offset] = counts_from_weights([*inside, int((1 - edges[-1] + edges[0]) * unit)])
    return counts
