"""Bytes that nobody vouches for, to a picture.  The type is decided by the bytes, never by a name or a header."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from service.errors import AnimatedPicture, SdcError, TooManyPixels, UndecodablePicture, UnsupportedInput
from service.imaging.costs import require_cheap, require_few_pieces
from service.imaging.picture import LARGEST_SIDE, Picture, Plane

ACCEPTED = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP")
"""Pillow's names of the formats that are read"""
ACCEPTED_TYPES = ("image/jpeg", "image/png", "image/webp", "image/avif", "image/tiff", "image/gif", "image/bmp")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp"}
"""of the files in a folder that are taken for photographs; whether they are is decided by their bytes"""

ROWS_AT_ONCE = 16
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
"""tag and value, TIFF 6.0 section 3"""

# Pillow's own limit only warns below twice its value; ours is checked before any decoding.
Image.MAX_IMAGE_PIXELS = None

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def photographs(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Files that are taken for photographs, at any depth unless ``pattern`` says otherwise, sorted.

    Hidden ones are none: macOS leaves ``._cat.jpg`` beside ``cat.jpg``.
    """
    return [path for path in sorted(folder.glob(pattern)) if named_as_photograph(path.name) and path.is_file()]


def named_as_photograph(name: str) -> bool:
    """Whether a file of this name is taken for a photograph."""
    return not name.startswith(".") and PurePath(name).suffix.lower() in SUFFIXES


def open_picture(content: bytes, max_pixels: int) -> Picture:
    """Decode, turn upright, convert to 8-bit sRGB and drop all metadata.

    16-bit samples are reduced to 8; an embedded ICC profile is converted from (one that cannot be read is ignored); CMYK and palettes
    become RGB; transparency of any kind becomes an alpha plane, left out where it is opaque throughout.

    Raises:
        UnsupportedInput: not one of the accepted formats.
        TooManyPixels: or a side that is too long; found from the header, before decoding.
        AnimatedPicture: more than one frame.
        UndecodablePicture: truncated, damaged, or made to take far more time or memory than its pixels do.
    """
    with _damage_told(), _read_header(content, max_pixels) as image:
        image.load()
        if image.format == "PNG":
            _scale_transparency(image, depth=content[24])
        return _to_picture(image)


def picture_size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height as stored (not yet turned upright), from the header alone; raises what ``open_picture`` raises for a header."""
    with _damage_told(), _read_header(content, max_pixels) as image:
        return image.size


def _read_header(content: bytes, max_pixels: int) -> Image.Image:
    require_few_pieces(content)
    image = Image.open(io.BytesIO(content), formats=ACCEPTED)
    # JPEGs with a second picture for other displays ("MPO", phones write them) are photographs: the first frame is the photo.
    # Not ``n_frames``: that looks for the last one, past as many as there may be.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise AnimatedPicture("the picture has more than one frame: send a single one")
    if image.width * image.height > max_pixels:
        raise TooManyPixels(f"the picture has {image.width * image.height:,} pixels; at most {max_pixels:,} are accepted", max_pixels)
    if max(image.size) > LARGEST_SIDE:
        raise TooManyPixels(f"the picture is {image.width}x{image.height}; a side has at most {LARGEST_SIDE:,} pixels")
    require_cheap(image, content)
    return image


@contextmanager
def _damage_told() -> Iterator[None]:
    """Turn whatever Pillow raises into errors of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF and the like: nothing a caller can act on
            yield
    except UnidentifiedImageError as error:
        raise UnsupportedInput(f"these bytes are no picture of an accepted type: {', '.join(ACCEPTED)}") from error
    except SdcError:
        raise
    except Exception as error:
        # Pillow's plugins raise almost anything on damaged input (OSError, SyntaxError, struct.error, RuntimeError, IndexError ...), and
        # nothing but the untrusted bytes can be at fault here.
        raise UndecodablePicture("the picture is truncated or damaged") from error


def _to_picture(image: Image.Image) -> Picture:
    profile = image.info.get("icc_profile")
    with suppress(Exception):  # of damaged EXIF: the picture is sound, and stays as it is
        ImageOps.exif_transpose(image, in_place=True)
    image, alpha = _split_alpha(_to_eight_bits(image))
    rgb = _to_srgb(image, profile)
    pixels = np.asarray(rgb)
    if alpha is None or alpha.min() == 255:
        return Picture(np.ascontiguousarray(pixels))
    return Picture(_fill_hidden(pixels, alpha), alpha)


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Bring the level or colour that stands for transparent to the scale of the samples, which Pillow brings to eight bits without it.

    ``depth`` is that of the file (PNG, section 11.2.2).  Colours of 16 bits that agree in their upper eight become transparent together.
    """
    level = image.info.get("transparency")
    if image.mode == "L" and isinstance(level, int) and depth in (2, 4):
        image.info["transparency"] = level * (255 // ((1 << depth) - 1))
    elif image.mode == "RGB" and isinstance(level, tuple) and depth == 16:
        image.info["transparency"] = tuple(sample >> 8 for sample in level)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and float grey to 8-bit grey, with alpha where one level is transparent; every other mode as it is."""
    if image.mode.startswith("I") or image.mode == "F":
        eight = _sixteen_to_eight(np.asarray(image), image.mode)
        if image.format == "TIFF" and image.mode.startswith("I;16") and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
            eight = 255 - eight  # as Pillow does of eight bits
        transparent = image.info.get("transparency")
        if not isinstance(transparent, int):
            return Image.fromarray(eight)
        alpha = np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", (Image.fromarray(eight), Image.fromarray(alpha)))
    return image


def _sixteen_to_eight(samples: npt.NDArray[Any], mode: str) -> Plane:
    """Grey samples of 0..65535, or 0..1 in a float picture, to 0..255; a few rows at a time, because floats are large."""
    unit = 1.0 if mode == "F" and samples.size and np.nanmax(samples) <= 1.0 else 65535.0
    eight = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), ROWS_AT_ONCE):
        rows: npt.NDArray[np.float64] = np.nan_to_num(samples[top : top + ROWS_AT_ONCE].astype(np.float64))
        eight[top : top + ROWS_AT_ONCE] = np.clip(np.rint(rows * 255 / unit), 0, 255)
    return eight


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Plane | None]:
    if image.mode in ("P", "PA") or "transparency" in image.info:
        opaque = image.mode == "P" and "transparency" not in image.info
        image = image.convert("RGB" if opaque else "LA" if image.mode == "L" else "RGBA")
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in ("RGBA", "LA"):
        alpha = np.asarray(image.getchannel("A"))
        return image.convert("RGB" if image.mode == "RGBA" else "L"), alpha
    return image, None


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    if isinstance(profile, bytes) and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, _SRGB, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
            )
            return cast(Image.Image, converted)
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a profile that does not fit its picture says nothing: take the samples for sRGB
    return image if image.mode == "RGB" else image.convert("RGB")


def _fill_hidden(pixels: Plane, alpha: Plane) -> Plane:
    """Colour of the fully transparent pixels: the mean of the visible ones.  Nobody sees it, so it must not cost bytes."""
    hidden = alpha == 0
    filled = pixels.copy()
    if hidden.any():
        filled[hidden] = np.rint(pixels[~hidden].mean(0)).astype(np.uint8) if not hidden.all() else 128
    return filled
