"""Known latents laid out by phase, so that the window around every position of a pass is read in place.

A pass visits every second position of every second row.  Its neighbours at one place of the window then lie in one of four planes,
one for each phase of the 2x2 lattice, all shifted alike: a run of memory, and no window is ever copied together.

    plane of a phase, seen flat:   0 | a b c 0 | d e f 0 | ...     one column of zeros ends a row and begins the next
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))
WINDOWS = (1, 3, 5)
"""sides a window may have"""

Exact = npt.NDArray[np.floating]
"""integers, held exactly in float64 (in float32 only to estimate)"""


@cache
def known_in_window(side: int, phase: int) -> tuple[tuple[int, int, int, bool], ...]:
    """A window's places, row by row: the phase they lie in, rows and columns of its plane away, and whether it precedes ``phase``."""
    row, column = PHASES[phase]
    radius = side // 2
    places = []
    for y in range(row - radius, row + radius + 1):
        for x in range(column - radius, column + radius + 1):
            other = PHASES.index((y % 2, x % 2))
            places.append((other, y // 2, x // 2, other < phase))
    return tuple(places)


class Lattice:
    """Latents of a picture of (height, width) positions as far as they are known, all zero at first."""

    def __init__(self, channels: int, height: int, width: int, dtype: type[np.floating]) -> None:
        self.height, self.width = height, width
        self._rows, self._stride = -(-height // 2), -(-width // 2) + 1
        self._planes = np.zeros((len(PHASES), (self._rows + 2) * self._stride + 2, channels), dtype)

    def shape(self, phase: int) -> tuple[int, int]:
        """Rows and columns that a phase has."""
        row, column = PHASES[phase]
        return -(-(self.height - row) // 2), -(-(self.width - column) // 2)

    def put(self, phase: int, channels: slice, values: Exact) -> None:
        """Make the channels of a phase known: (rows, columns, channels)."""
        start = self._stride + 1
        rows, columns = values.shape[:2]
        plane = self._planes[phase, start : start + self._rows * self._stride].reshape(self._rows, self._stride, -1)
        plane[:rows, :columns, channels] = values

    def around(self, phase: int, rows: slice, earlier: slice, own: slice, side: int) -> Seen:
        """The windows around some rows of a phase.

        ``earlier`` are the channels of groups that are known throughout; ``own``, which follow them, those of the pass's group, known
        in the phases that precede.
        """
        count = (rows.stop - rows.start) * self._stride
        places = []
        for other, down, right, known in known_in_window(side, phase):
            start = (rows.start + down + 1) * self._stride + 1 + right
            channels = slice(earlier.start, own.stop) if known else earlier
            if channels.stop > channels.start:
                places.append(self._planes[other, start : start + count, channels])
        return Seen(places, own.start, rows.stop - rows.start, self._stride, self.shape(phase)[1])


@dataclass(frozen=True)
class Seen:
    """What a pass may look at for n positions, row by row."""

    places: list[Exact]
    """(n', k) for each place of the window where anything is known: all earlier channels or, in known phases, those of this group too.
    n' counts the column of zeros; ``trim`` leaves it out"""
    earlier: int
    """channels of earlier groups"""
    rows: int
    stride: int
    columns: int

    @property
    def size(self) -> int:
        """n'"""
        return self.rows * self.stride

    def trim(self, values: Exact) -> Exact:
        """(n', k) to (n, k), a copy."""
        trimmed = values.reshape(self.rows, self.stride, values.shape[1])[:, : self.columns]
        return trimmed.reshape(self.rows * self.columns, values.shape[1])
