"""Pictures to bytes of a web format, and the alpha plane to its own lossless bytes."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from PIL import Image

from service.errors import CorruptBlob
from service.imaging.costs import require_few_pieces
from service.imaging.picture import LARGEST_SIDE, Picture, Plane

WEBP_LARGEST_SIDE: Final = 16383
AVIF_LARGEST_SIDE: Final = 32768
"""beyond, libavif writes what it does not read"""


@dataclass(frozen=True)
class Format:
    """A format renders are written in."""

    extension: str
    content_type: str
    largest_side: int
    """pixels; more cannot be written"""
    lossless: bool = False


FORMATS: Final = {
    "png": Format("png", "image/png", LARGEST_SIDE, lossless=True),
    "webp": Format("webp", "image/webp", WEBP_LARGEST_SIDE),
    "jpg": Format("jpg", "image/jpeg", 65500),
    "avif": Format("avif", "image/avif", AVIF_LARGEST_SIDE),
}
DEFAULT_QUALITY: Final = 80


def write_picture(picture: Picture, extension: str, quality: int = DEFAULT_QUALITY) -> bytes:
    """Encode for the web.

    Args:
        picture: sides within the format's ``largest_side``.
        extension: one of ``FORMATS``.
        quality: 1..100, for the lossy formats.

    JPEG has no transparency: the picture is laid on white.
    """
    if extension == "jpg":
        with _memory_file() as file:
            on_white(picture).save(file, "JPEG", quality=quality, optimize=True, progressive=True)
            file.seek(0)
            return file.read()
    out = io.BytesIO()
    if extension == "png":
        picture.image().save(out, "PNG", compress_level=6)
    elif extension == "webp":
        picture.image().save(out, "WEBP", quality=quality, method=4)
    else:
        picture.image().save(out, "AVIF", quality=quality, speed=8)
    return out.getvalue()


def _memory_file() -> BinaryIO:
    """A file in memory, with a descriptor where the system has such (Linux).

    For a descriptor Pillow encodes without the interpreter; else it keeps it for the whole of an optimised or progressive JPEG, and
    everything stands still (0.35 s for 15 megapixels).
    """
    return os.fdopen(os.memfd_create("picture"), "w+b") if hasattr(os, "memfd_create") else io.BytesIO()


def write_alpha(alpha: Plane) -> bytes:
    """Alpha plane (H, W) to its section in a blob: lossless WebP of a grey picture, or PNG beyond what WebP can hold."""
    out = io.BytesIO()
    image = Image.fromarray(alpha)
    if max(alpha.shape) <= WEBP_LARGEST_SIDE:
        image.convert("RGB").save(out, "WEBP", lossless=True, quality=100, method=4)
    else:
        image.save(out, "PNG", optimize=True)
    return out.getvalue()


def read_alpha(content: bytes, width: int, height: int) -> Plane:
    """The reverse; raises CorruptBlob unless it is a picture of exactly that size."""
    try:
        require_few_pieces(content)
        image = Image.open(io.BytesIO(content), formats=("WEBP", "PNG"))
        if image.size != (width, height) or getattr(image, "is_animated", False):
            raise CorruptBlob("the alpha section does not have the picture's size")
        return np.asarray(image.convert("RGB"))[:, :, 0].copy()
    except CorruptBlob:
        raise
    except Exception as error:  # Pillow raises almost anything on damaged input, and nothing else can be at fault here
        raise CorruptBlob("the alpha section is damaged") from error


def on_white(picture: Picture) -> Image.Image:
    """As it looks on a white page: RGB."""
    image = Image.fromarray(picture.rgb)
    if picture.alpha is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), Image.fromarray(picture.alpha))
