"""What a page can paint before the picture arrives: a few pixels of it, and its colour."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from service.imaging.picture import Picture

LARGEST_URI = 599
"""characters"""
SIDES = (24, 20, 16, 12, 8)
"""of the preview, longest first: the largest that fits"""
QUALITY = 40
PALETTE = 8
SEEN = 64
"""a pixel whose alpha is lower has no colour to speak of"""


@dataclass(frozen=True)
class Glance:
    """A first look at a picture."""

    preview: str
    """data URI of a WebP of a few pixels, under 600 characters; to be scaled up and blurred by whoever shows it"""
    color: str
    """the dominant one, ``#rrggbb``"""


def glance(picture: Picture) -> Glance:
    """Look at a picture."""
    image = picture.image()
    small = image if max(image.size) <= SIDES[0] else _shrunk(image, SIDES[0])
    return Glance(_preview(small), _dominant(small))


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = tuple(max(1, round(each * scale)) for each in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.BOX, reducing_gap=2.0)


def _preview(small: Image.Image) -> str:
    for side in SIDES:
        out = io.BytesIO()
        (small if max(small.size) <= side else _shrunk(small, side)).save(out, "WEBP", quality=QUALITY, method=4)
        uri = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
        if len(uri) <= LARGEST_URI:
            return uri
    return _preview(small.convert("RGB"))  # an alpha plane of noise: without it 8 pixels always fit


def _dominant(small: Image.Image) -> str:
    """The commonest of a few colours that stand for all that can be seen."""
    pixels = np.asarray(small.convert("RGBA")).reshape(-1, 4)
    seen = pixels[pixels[:, 3] >= SEEN, :3]
    if not len(seen):
        return "#ffffff"
    few = Image.fromarray(np.ascontiguousarray(seen[None])).quantize(PALETTE, Image.Quantize.MEDIANCUT)
    which = np.bincount(np.asarray(few).ravel()).argmax()
    return "#" + bytes((few.getpalette() or [])[3 * which : 3 * which + 3]).hex()
