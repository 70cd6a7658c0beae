import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from service.errors import AnimatedPicture, SdcError, TooManyPixels, UndecodablePicture, UnsupportedInput
from service.imaging.opening import open_picture
from tests.conftest import Plane, chunk, make_picture, png, saved

LIMIT = 1 << 24
SOURCE = make_picture(40, 60)


def colour_error(left: Plane, right: Plane) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP"])
def test_accepted_formats(kind: str) -> None:
    options = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    picture = open_picture(saved(Image.fromarray(SOURCE), kind, **options), LIMIT)
    assert picture.rgb.shape == SOURCE.shape
    assert picture.alpha is None
    assert colour_error(picture.rgb, SOURCE) < 6


def test_grey_becomes_three_equal_channels() -> None:
    grey = SOURCE[:, :, 0]
    assert (open_picture(png(grey), LIMIT).rgb == grey[:, :, None]).all()


def test_one_bit() -> None:
    picture = open_picture(saved(Image.fromarray(SOURCE).convert("1"), "PNG"), LIMIT)
    assert set(np.unique(picture.rgb)) <= {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_rounded_to_eight(kind: str) -> None:
    samples = (SOURCE[:, :, 0].astype(np.uint16) * 257).astype(np.uint16)
    picture = open_picture(saved(Image.fromarray(samples), kind), LIMIT)
    assert (picture.rgb == SOURCE[:, :, :1]).all()


def test_sixteen_bit_colour() -> None:
    """Written by hand, because Pillow cannot write it."""
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in SOURCE)

    header = struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(open_picture(content, LIMIT).rgb.astype(int) - SOURCE).max() <= 1


def test_cmyk() -> None:
    picture = open_picture(saved(Image.fromarray(SOURCE).convert("CMYK"), "JPEG", quality=95), LIMIT)
    assert colour_error(picture.rgb, SOURCE) < 8


def test_palette() -> None:
    quantised = Image.fromarray(SOURCE).quantize(64)
    assert (open_picture(saved(quantised, "PNG"), LIMIT).rgb == np.asarray(quantised.convert("RGB"))).all()


def test_palette_with_transparency() -> None:
    quantised = Image.fromarray(SOURCE).quantize(64)
    picture = open_picture(saved(quantised, "PNG", transparency=3), LIMIT)
    assert picture.alpha is not None
    assert ((picture.alpha == 0) == (np.asarray(quantised) == 3)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept(mode: str) -> None:
    alpha = np.zeros((40, 60), np.uint8)
    alpha[10:30, 10:50], alpha[15, 15] = 255, 77
    image = Image.fromarray(SOURCE).convert(mode.removesuffix("A"))
    image.putalpha(Image.fromarray(alpha))
    picture = open_picture(saved(image, "PNG"), LIMIT)
    assert picture.alpha is not None
    assert (picture.alpha == alpha).all()
    expected = np.asarray(image.convert("RGB"))
    assert (picture.rgb[alpha > 0] == expected[alpha > 0]).all()
    assert len(np.unique(picture.rgb[alpha == 0], axis=0)) == 1, "hidden colours must not cost bytes"


def test_what_nobody_sees_has_the_colour_of_the_rest() -> None:
    """So that it costs no bytes: editors leave anything there."""
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[:, :20] = (255, 0, 255, 0)
    pixels[:, 20:40] = (10, 100, 30, 255)
    pixels[:, 40:] = (20, 200, 50, 128)
    picture = open_picture(png(pixels), LIMIT)
    assert (picture.rgb[:, :20] == (15, 150, 40)).all()
    assert (picture.rgb[:, 20:] == pixels[:, 20:, :3]).all()


def test_what_is_no_number_in_a_float_picture_is_black() -> None:
    samples = np.array([[0.0, 0.5, np.nan, 1.0]] * 4, np.float32)
    assert open_picture(saved(Image.fromarray(samples), "TIFF"), LIMIT).rgb[0, :, 0].tolist() == [0, 128, 0, 255]


def test_opaque_alpha_is_dropped() -> None:
    image = Image.fromarray(SOURCE)
    image.putalpha(255)
    assert open_picture(saved(image, "PNG"), LIMIT).alpha is None


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda p: p), (2, lambda p: p[:, ::-1]), (3, lambda p: p[::-1, ::-1]), (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)), (6, lambda p: np.rot90(p, -1)), (7, lambda p: np.rot90(p, -1)[:, ::-1]),
        (8, lambda p: np.rot90(p)),
    ],
)  # fmt: skip
def test_orientation_is_applied(orientation: int, upright: Callable[[Plane], Plane]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = open_picture(saved(Image.fromarray(SOURCE), "PNG", exif=exif), LIMIT).rgb
    assert shown.shape == upright(SOURCE).shape
    if orientation != 7:
        assert (shown == upright(SOURCE)).all()
    else:
        assert (shown == SOURCE[::-1, ::-1].transpose(1, 0, 2)).all()


def test_a_profile_is_converted_to_srgb() -> None:
    """A profile whose red primary is sRGB's green and the other way round: its samples mean the picture with both swapped."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
    for mode, profile, expected in (("RGB", srgb, SOURCE), ("RGB", swapped, SOURCE[:, :, [1, 0, 2]])):
        content = saved(Image.fromarray(SOURCE).convert(mode), "PNG", icc_profile=profile)
        assert colour_error(open_picture(content, LIMIT).rgb, expected) < 1.5


def linear_grey() -> bytes:
    """An ICC profile (ICC.1:2004, sections 7 and 8.3.1) of grey whose samples are in proportion to light."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(4) + struct.pack(">I", 0)
    parts = {b"wtpt": white, b"kTRC": curve}
    at = 128 + 4 + 12 * len(parts)
    table, data = struct.pack(">I", len(parts)), b""
    for name, part in parts.items():
        table += name + struct.pack(">2I", at + len(data), len(part))
        data += part + bytes(-len(part) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", at + len(data), bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ", bytes(12), b"acsp")
    return head + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(128 - 80) + table + data


@pytest.mark.parametrize("level", [None, 9])
def test_the_profile_of_a_grey_picture_with_a_transparent_level(level: int | None) -> None:
    image = Image.new("L", (8, 8), 64)
    image.putpixel((0, 0), 9)
    content = saved(image, "PNG", icc_profile=linear_grey(), **({} if level is None else {"transparency": level}))
    picture = open_picture(content, LIMIT)
    assert (picture.alpha is None) == (level is None)
    assert picture.rgb[4, 4].tolist() == [137, 137, 137]


def test_a_damaged_profile_is_ignored() -> None:
    content = saved(Image.fromarray(SOURCE), "PNG", icc_profile=b"no profile at all")
    assert (open_picture(content, LIMIT).rgb == SOURCE).all()


def test_phone_jpegs_with_a_second_picture_are_photographs() -> None:
    small = Image.fromarray(SOURCE[::2, ::2].copy())
    content = saved(Image.fromarray(SOURCE), "MPO", save_all=True, append_images=[small])
    assert open_picture(content, LIMIT).rgb.shape == SOURCE.shape


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated_is_refused(kind: str) -> None:
    frames = [Image.fromarray(make_picture(20, 20, seed)) for seed in range(3)]
    with pytest.raises(AnimatedPicture):
        open_picture(saved(frames[0], kind, save_all=True, append_images=frames[1:]), LIMIT)


def test_a_single_frame_gif_is_a_picture() -> None:
    assert open_picture(saved(Image.fromarray(SOURCE), "GIF"), LIMIT).width == 60


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.7 ...", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(1000)])
def test_not_a_picture(content: bytes) -> None:
    with pytest.raises(UnsupportedInput):
        open_picture(content, LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_truncated(kind: str) -> None:
    content = saved(Image.fromarray(make_picture(300, 300)), kind)
    with pytest.raises((UndecodablePicture, UnsupportedInput)):
        open_picture(content[: len(content) // 2], LIMIT)


def test_pixels_are_counted_before_decoding() -> None:
    """A bomb: a few hundred bytes that claim 10 gigapixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    with pytest.raises(TooManyPixels):
        open_picture(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + struct.pack(">I", 100) + b"IDAT" + bytes(100), LIMIT)


SAMPLES = {kind: saved(Image.fromarray(SOURCE), kind) for kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP")}


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(sorted(SAMPLES)), seed=st.integers(0, 2**32 - 1), flips=st.integers(1, 20))
def test_damage_is_never_an_unexpected_error(kind: str, seed: int, flips: int) -> None:
    rng = np.random.default_rng(seed)
    content = np.frombuffer(SAMPLES[kind], np.uint8).copy()
    content[rng.integers(0, len(content), flips)] = rng.integers(0, 256, flips)
    try:
        picture = open_picture(content.tobytes()[: rng.integers(1, len(content) + 1)], LIMIT)
    except SdcError:
        return
    assert picture.rgb.dtype == np.uint8
    assert picture.rgb.ndim == 3


def test_a_side_too_long_for_the_format() -> None:
    with pytest.raises(TooManyPixels, match="65,535"):
        open_picture(png(np.zeros((1, 65_536, 3), np.uint8)), LIMIT)
    assert open_picture(png(np.zeros((1, 65_535, 3), np.uint8)), LIMIT).width == 65_535


def test_sixteen_bit_grey_with_a_transparent_level() -> None:
    samples = (SOURCE[:, :, 0].astype(np.uint16) * 257).astype(np.uint16)
    level = int(samples[3, 4])
    picture = open_picture(saved(Image.fromarray(samples), "PNG", transparency=level), LIMIT)
    assert picture.alpha is not None
    assert ((picture.alpha == 0) == (samples == level)).all()


def png_by_hand(depth: int, colour: int, samples: list[list[int]], transparent: list[int]) -> bytes:
    """Of samples that Pillow cannot write: 2 and 4 bits a grey sample, 16 bits a colour."""

    rows = b""
    for row in samples:
        bits = "".join(format(sample, f"0{depth}b") for sample in row)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    width = len(samples[0]) // (3 if colour == 2 else 1)
    header = struct.pack(">IIBBBBB", width, len(samples), depth, colour, 0, 0, 0)
    trns = struct.pack(f">{len(transparent)}H", *transparent)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", trns) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_level_of_any_depth(depth: int) -> None:
    most = (1 << depth) - 1
    picture = open_picture(png_by_hand(depth, 0, [[most] * 4 + [most // 3] * 4] * 8, [most]), LIMIT)
    assert picture.alpha is not None
    assert (picture.alpha == [0] * 4 + [255] * 4).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_of_any_depth(depth: int) -> None:
    gone, there = ([0x12, 0x56, 0x9A], [0x80, 0x40, 0x20]) if depth == 8 else ([0x1234, 0x5678, 0x9ABC], [0x8000, 0x4000, 0x2000])
    picture = open_picture(png_by_hand(depth, 2, [gone * 4 + there * 4] * 8, gone), LIMIT)
    assert picture.alpha is not None
    assert (picture.alpha == [0] * 4 + [255] * 4).all()
    assert (picture.rgb[0, 7] == [0x80, 0x40, 0x20]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0GARBAGEGARBAGE", b"Exif\0\0II*\0\x08\0\0\0\x05\0", b"Exif\0\0MM\0*\x7f\xff\xff\xff"])
def test_damaged_exif_does_not_damage_the_picture(kind: str, exif: bytes) -> None:
    assert open_picture(saved(Image.fromarray(SOURCE), kind, exif=exif), LIMIT).rgb.shape == SOURCE.shape
