"""Cuts a picture too large for the device into overlapping windows, and puts the pieces together.  Geometry only, numpy only.

Whether and how a picture is tiled depends on its size alone (``service.manifest.TilingRule``) and is recorded in the blob, because a
tiled result differs from an untiled one near the seams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SMALL_SIDE = 32
SMALL_BORDER_CELLS = 2
"""a picture narrower than SMALL_SIDE pixels is all border to the networks, and loses its colour; it is computed inside a border of its own
edge, this many latent positions wide, which is not coded.  Larger pictures do better without: the networks know what a border is."""


def border_cells(width: int, height: int) -> int:
    """Latent positions of uncoded border around a picture of this size."""
    return SMALL_BORDER_CELLS if min(width, height) < SMALL_SIDE else 0


@dataclass(frozen=True)
class Span:
    """One tile along one axis: the core it is responsible for, inside the window that is computed.  [start, end)."""

    core_start: int
    core_end: int
    window_start: int
    window_end: int

    @property
    def core(self) -> slice:
        return slice(self.core_start, self.core_end)

    @property
    def window(self) -> slice:
        return slice(self.window_start, self.window_end)

    @property
    def core_in_window(self) -> slice:
        return slice(self.core_start - self.window_start, self.core_end - self.window_start)


@dataclass(frozen=True)
class Tile:
    rows: Span
    columns: Span


def spans(length: int, side: int, margin: int) -> list[Span]:
    """Spans of equal windows that cover ``length``; one that is all of it when it is no longer than a window."""
    window = side + 2 * margin
    if length <= window:
        return [Span(0, length, 0, length)]
    found = []
    for core_start in range(0, length, side):
        window_start = min(max(0, core_start - margin), length - window)
        found.append(Span(core_start, min(core_start + side, length), window_start, window_start + window))
    return found


def tiles(height: int, width: int, side: int, margin: int) -> list[Tile]:
    """All tiles, row by row; in any unit, as long as it is the same for all four."""
    return [Tile(rows, columns) for rows in spans(height, side, margin) for columns in spans(width, side, margin)]


def paste(canvas: npt.NDArray[np.uint8], tile: Tile, piece: npt.NDArray[np.uint8], feather: int) -> None:
    """Put a tile's window into the canvas (H, W, 3), fading in over ``feather`` pixels on each side of a seam.

    Tiles must come in the order of ``tiles``: what lies above and to the left is already there.
    """
    top, bottom, fade_rows = _faded(tile.rows, canvas.shape[0], feather)
    left, right, fade_columns = _faded(tile.columns, canvas.shape[1], feather)
    new = piece[top - tile.rows.window_start : bottom - tile.rows.window_start]
    new = new[:, left - tile.columns.window_start : right - tile.columns.window_start]
    old = canvas[top:bottom, left:right]
    opacity = (fade_rows[:, None] * fade_columns[None, :])[:, :, None]
    old[:] = np.rint(old + (new.astype(np.float32) - old) * opacity).astype(np.uint8)


def _faded(span: Span, length: int, feather: int) -> tuple[int, int, npt.NDArray[np.float32]]:
    """Where a tile is pasted along one axis, and how opaque it is there."""
    start, end = max(0, span.core_start - feather), min(length, span.core_end + feather)
    opacity = np.ones(end - start, np.float32)
    if span.core_start > 0:
        ramp = min(2 * feather, end - start)
        opacity[:ramp] = (np.arange(ramp, dtype=np.float32) + 0.5) / (2 * feather)
    return start, end, opacity
