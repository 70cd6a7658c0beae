"""How many more bytes one codec needs than another for the same quality, over all the qualities that both reach (Bjontegaard 2001).

Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.interpolate import PchipInterpolator

Curve = Sequence[tuple[float, float]]
"""bytes, and a quality of which more is better"""
FEWEST_POINTS = 4
SMALLEST_OVERLAP = 0.5
"""of the narrower curve's range of qualities"""


def bd_rate(ours: Curve, theirs: Curve) -> float | None:
    """Mean difference of log bytes over the shared qualities, as a share: -0.1 means that ours takes 10 % fewer bytes.

    Monotone piecewise cubic interpolation of log bytes over quality, which does not swing as the cubic of 2001 does.  None where it is
    not well defined: fewer than four sizes, a quality that does not rise with the bytes, or curves that share less than half of the
    narrower one's range.
    """
    mine, other = _rising(ours), _rising(theirs)
    if mine is None or other is None:
        return None
    low, high = max(mine[0][1], other[0][1]), min(mine[-1][1], other[-1][1])
    narrower = min(curve[-1][1] - curve[0][1] for curve in (mine, other))
    if high - low < SMALLEST_OVERLAP * narrower:
        return None
    difference = _mean_log_bytes(mine, low, high) - _mean_log_bytes(other, low, high)
    return float(np.expm1(difference))


def _rising(curve: Curve) -> list[tuple[float, float]] | None:
    """In order of bytes, each file once; None where that leaves too few, or more bytes do not show."""
    points = sorted(set(curve))
    rising = all(left[0] < right[0] and left[1] < right[1] for left, right in pairwise(points))
    return points if rising and len(points) >= FEWEST_POINTS else None


def _mean_log_bytes(curve: list[tuple[float, float]], low: float, high: float) -> float:
    sizes, levels = zip(*curve, strict=True)
    return float(PchipInterpolator(levels, np.log(sizes)).integrate(low, high)) / (high - low)
