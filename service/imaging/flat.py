"""Flat ground in pixels: where it is, and its colour given back to it.

Knows cells, squares of so many pixels a side, and nothing of what is made of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from service.imaging.picture import Plane

EVEN: Final = 2
"""levels: a cell whose pixels differ by no more says what colour the ground has"""
NEAR: Final = 6
"""levels that a pixel of the ground may be off its colour: what a JPEG leaves beside an edge"""
NEAR_IN_MEAN: Final = 0.75
"""levels that the mean of a cell may be off, so that no shadow is taken for ground"""
FEWEST: Final = 24
"""cells of one colour that are looked at more closely"""


def find(rgb: Plane, cell: int) -> tuple[npt.NDArray[np.bool_], tuple[int, int, int]] | None:
    """Which cells of (height, width, 3) are of the colour that most flat ones are of, and that colour; None where few are.

    ``cell`` divides height and width.
    """
    ends = np.stack([rgb[row::cell, column::cell] for row in (0, cell - 1) for column in (0, cell - 1)])
    if (np.ptp(ends, axis=0) <= EVEN).all(-1).sum() < FEWEST:  # a quick no, as of nearly every photograph
        return None
    cells = rgb.reshape(rgb.shape[0] // cell, cell, rgb.shape[1] // cell, cell, 3)
    low, high = cells.min((1, 3)), cells.max((1, 3))
    even = (high - low <= EVEN).all(-1)
    if even.sum() < FEWEST:
        return None
    means = cells.mean((1, 3), dtype=np.float32)
    colours, counts = np.unique(np.rint(means[even]), axis=0, return_counts=True)
    colour = colours[counts.argmax()]
    off = np.stack([colour - low, high - colour, np.abs(means - colour) * (NEAR / NEAR_IN_MEAN)])
    red, green, blue = colour.astype(int).tolist()
    return np.all(off <= NEAR, axis=(0, -1)), (red, green, blue)


def lay(rgb: Plane, mask: npt.NDArray[np.bool_], colour: tuple[int, int, int], cell: int) -> Plane:
    """A picture whose cells of a mask (h, w) have their colour: wholly inside, and less and less towards what is not of the mask.

    How much of it a pixel gets is what the corners of its cell have, by bilinear interpolation: all of it where the cells that meet there
    are all of the mask, as those outside the picture are, and nothing elsewhere.  In integers.

    Args:
        rgb: (height, width, 3), of at most h * cell by w * cell pixels.
    """
    around = np.pad(mask, 1, constant_values=True)
    corners = (around[:-1, :-1] & around[:-1, 1:] & around[1:, :-1] & around[1:, 1:]).astype(np.int32)
    far = 2 * np.arange(cell, dtype=np.int32) + 1  # of 2 * cell, from one corner to the next
    near = 2 * cell - far
    whole = 4 * cell * cell
    laid = rgb.copy()
    for row in np.flatnonzero(mask.any(1)):
        part = laid[row * cell : (row + 1) * cell]
        left_to_right = corners[row : row + 2, :-1, None] * near + corners[row : row + 2, 1:, None] * far
        above, below = left_to_right.reshape(2, 1, -1)
        share = (above * near[:, None] + below * far[:, None])[: len(part), : rgb.shape[1], None]
        part[...] = (part * (whole - share) + np.array(colour, np.int32) * share + whole // 2) // whole
    return laid
