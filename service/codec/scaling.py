"""At which scale a picture is coded that must fit into few bytes.

A step so coarse that most of a picture rounds to nothing wastes what the network can say: the same bytes show more of a picture that is
coded smaller, with a finer step, and enlarged when it is shown.  What is decided here is what is sent, never how it is read: floats do.
"""

from __future__ import annotations

from typing import Final

from service.codec.container import WHOLE_SCALE, scaled
from service.manifest import ScaleRule

SCALES: Final = (WHOLE_SCALE, 12, 8, 6, 4, 3, 2, 1)
"""that are chosen among, in sixteenths of a picture's sides; a file may have any"""
SMALLEST_SIDE: Final = 64
"""pixels: no picture is coded smaller"""
HOPELESS_BPP: Final = 0.02
"""under so few bits per pixel no photograph is coded best: the first try is smaller"""


def scales_of(width: int, height: int) -> tuple[int, ...]:
    """Those that a picture of this size may be coded at, its own first."""
    return tuple(scale for scale in SCALES if scale == WHOLE_SCALE or min(scaled(width, height, scale)) >= SMALLEST_SIDE)


def first_scale(width: int, height: int, max_bytes: int) -> int:
    """What to begin with, from sizes alone: the largest that leaves ``HOPELESS_BPP`` to a pixel, or the smallest of all."""
    scales = scales_of(width, height)
    for scale in scales:
        coded_width, coded_height = scaled(width, height, scale)
        if 8 * max_bytes >= HOPELESS_BPP * coded_width * coded_height:
            return scale
    return scales[-1]


def next_scale(width: int, height: int, scale: int, step_index: int, rule: ScaleRule) -> int:
    """The scale to go on with where at this one the step would be ``step_index``; the same where that is well."""
    smaller = [other for other in scales_of(width, height) if other < scale]
    wanted = (step_index >= rule.three_quarters) + (step_index >= rule.half)
    return smaller[min(wanted, len(smaller)) - 1] if wanted and smaller else scale
