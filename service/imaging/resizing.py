"""Decoded pictures to the size a page shows them at.  Never larger than they are: who asks for more gets what there is.
And pictures to the size they are coded at, and back.

inside    as large as fits into the box; one side may be left open
cover     fills the box, what hangs over is cut off evenly
contain   as inside, laid in the middle of a box of exactly that size, the rest transparent
fill      stretched to the box
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from service.errors import BadParameter
from service.imaging.picture import Picture, Plane

Fit = Literal["inside", "cover", "contain", "fill"]
FITS: tuple[Fit, ...] = get_args(Fit)
LARGEST_BOX = 4096
"""pixels a side that may be asked for"""
REDUCING_GAP = 3.0
"""shrink cheaply to no less than so many times the size before filtering: Pillow calls the result indistinguishable"""


@dataclass(frozen=True)
class Box:
    """What a picture shall fit; at least one side."""

    width: int | None = None
    height: int | None = None
    fit: Fit = "inside"

    def __post_init__(self) -> None:
        sides = [side for side in (self.width, self.height) if side is not None]
        if not sides:
            raise BadParameter("a box needs a width or a height")
        if not all(1 <= side <= LARGEST_BOX for side in sides):
            raise BadParameter(f"width and height must be between 1 and {LARGEST_BOX}")
        if self.fit != "inside" and len(sides) < 2:
            raise BadParameter(f"fit={self.fit} needs width and height")

    def __str__(self) -> str:
        return f"{self.width or ''}x{self.height or ''}{self.fit}"


@dataclass(frozen=True)
class Plan:
    """What to do with a picture."""

    part: tuple[float, float, float, float]
    """left, top, right, bottom of what is kept, in pixels of the picture"""
    size: tuple[int, int]
    """width and height that part is scaled to"""
    canvas: tuple[int, int]
    """width and height of the result, the scaled part in its middle"""


def plan(width: int, height: int, box: Box) -> Plan:
    """How a picture of this size fills ``box``."""
    whole = (0.0, 0.0, float(width), float(height))
    if box.fit in ("inside", "contain"):
        scale = min(1.0, (box.width or width) / width, (box.height or height) / height)
        size = _whole(width * scale, height * scale)
        return Plan(whole, size, size if box.fit == "inside" else (box.width or size[0], box.height or size[1]))
    assert box.width is not None
    assert box.height is not None
    if box.fit == "fill":
        scale = min(1.0, width / box.width, height / box.height)
        size = _whole(box.width * scale, box.height * scale)
        return Plan(whole, size, size)
    ratio = max(box.width / width, box.height / height)
    scale, too_large = min(1.0, ratio), max(1.0, ratio)  # of the picture; of the box
    wanted = (box.width / too_large, box.height / too_large)
    kept_width, kept_height = min(float(width), wanted[0] / scale), min(float(height), wanted[1] / scale)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    size = _whole(*wanted)
    return Plan((left, top, left + kept_width, top + kept_height), size, size)


def _whole(width: float, height: float) -> tuple[int, int]:
    return max(1, round(width)), max(1, round(height))


def resize(picture: Picture, box: Box) -> Picture:
    """Scale with Lanczos's filter, transparency premultiplied; the picture itself where there is nothing to do."""
    wanted = plan(picture.width, picture.height, box)
    same = (picture.width, picture.height)
    if wanted.size == same == wanted.canvas and wanted.part == (0.0, 0.0, *same):
        return picture
    image = picture.image().resize(wanted.size, Image.Resampling.LANCZOS, box=wanted.part, reducing_gap=REDUCING_GAP)
    if wanted.canvas != wanted.size:
        canvas = Image.new("RGBA", wanted.canvas, (255, 255, 255, 0))
        canvas.paste(image, ((wanted.canvas[0] - wanted.size[0]) // 2, (wanted.canvas[1] - wanted.size[1]) // 2))
        image = canvas
    pixels = np.asarray(image)
    if pixels.shape[2] == 3:
        return Picture(pixels.copy())
    return Picture(np.ascontiguousarray(pixels[:, :, :3]), np.ascontiguousarray(pixels[:, :, 3]))


def shrink(rgb: Plane, width: int, height: int) -> Plane:
    """Colours at a smaller size, (height, width, 3), by Lanczos's filter."""
    return _scaled(rgb, width, height, Image.Resampling.LANCZOS)


def enlarge(rgb: Plane, width: int, height: int) -> Plane:
    """Colours at a larger size, (height, width, 3), by bicubic interpolation: the way back from ``shrink``."""
    return _scaled(rgb, width, height, Image.Resampling.BICUBIC)


def _scaled(rgb: Plane, width: int, height: int, filtered: Image.Resampling) -> Plane:
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), filtered, reducing_gap=REDUCING_GAP))
