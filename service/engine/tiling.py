"""Cuts a picture too large for the device into overlapping windows, and puts the pieces together.  Geometry only, numpy only.

Whether and how a picture is tiled depends on its size alone (``service.manifest.TilingRule``) and is recorded in the blob, because a
tiled result differs from an untiled one near the seams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Tile:
    rows: Span
    columns: Span

    @property
    def positions(self) -> int:
        """Of its window."""
        return (self.rows.window_end - self.rows.window_start) * (self.columns.window_end - self.columns.window_start)


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


class Mosaic:
    """Puts windows together on a canvas (H, W, C), bytes or floats, fading over ``feather`` positions on each side of a seam.

    Networks that normalise over what they see disagree by an offset from one window to the next: a step where tiles were cut hard.
    Windows of one row of tiles are joined first and rows then, so that where four meet each has its share.
    """

    def __init__(self, canvas: npt.NDArray[Any], feather: int) -> None:
        self._canvas, self._feather = canvas, feather
        self._band = canvas[:0]
        """of the row of tiles at work: its rows' window, the canvas's width"""

    def put(self, tile: Tile, piece: npt.NDArray[Any]) -> None:
        """Add a tile's window; tiles must come in the order of ``tiles``."""
        _, width, channels = self._canvas.shape
        if tile.columns.core_start == 0:
            self._band = np.empty((len(piece), width, channels), self._canvas.dtype)
        _fade_in(self._band.swapaxes(0, 1), tile.columns, piece.swapaxes(0, 1), self._feather)
        if tile.columns.core_end == width:
            _fade_in(self._canvas, tile.rows, self._band, self._feather)


def _fade_in(canvas: npt.NDArray[Any], span: Span, window: npt.NDArray[Any], feather: int) -> None:
    """Lay a window over the canvas along the first axis; before its seam stands what came before."""
    start, end = max(0, span.core_start - feather), min(len(canvas), span.core_end + feather)
    new = window[start - span.window_start : end - span.window_start]
    ramp = min(2 * feather, end - start) if span.core_start > 0 else 0
    canvas[start + ramp : end] = new[ramp:]
    opacity = ((np.arange(ramp, dtype=np.float32) + 0.5) / max(1, 2 * feather))[:, None, None]
    old = canvas[start : start + ramp]
    blended = old + (new[:ramp].astype(np.float32) - old) * opacity
    old[:] = blended if np.issubdtype(canvas.dtype, np.floating) else np.rint(blended)
