"""The article's coding: every constant against values worked out by hand."""

import hashlib
import zlib

import numpy as np
import pytest

from service.codec import palette
from service.errors import CorruptBlob


def natural(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(4, h, w): smooth, with some noise."""
    rng = np.random.default_rng(seed)
    waves = [np.sin(np.arange(height)[:, None] / a + np.arange(width)[None] / b) for a, b in rng.uniform(3, 9, (4, 2))]
    return (np.stack(waves) + 0.2 * rng.normal(size=(4, height, width))).astype(np.float32)


def test_a_byte_is_the_latent_over_the_scaling_twice() -> None:
    """The auto-encoder's latent z, 5.49 a unit of ours, over 0.18215, plus 127.5, halves up, clamped to a byte."""
    z = np.array([0.01, 0.2, -0.1, 1.0, -1.0, 22.0, 23.3, -23.3, 100.0, -100.0])
    worked_out = [128, 129, 127, 133, 122, 248, 255, 0, 255, 0]
    latent = np.repeat((z * 0.18215).astype(np.float32)[None, None], 4, 0)
    image = palette.to_bytes(latent)
    assert image.shape == (1, 10, 4) and image.dtype == np.uint8
    assert image[0, :, 2].tolist() == worked_out


def test_the_way_back_is_the_middle_of_a_byte() -> None:
    image = np.array([[[0, 127, 128, 255]]], np.uint8)
    latent = palette.from_bytes(image)
    assert latent.shape == (4, 1, 1)
    assert latent[:, 0, 0] == pytest.approx(np.array([-127.5, -0.5, 0.5, 127.5]) * 0.18215**2, rel=1e-6)
    assert (palette.to_bytes(latent) == image).all()


def test_the_channels_are_red_green_blue_and_alpha() -> None:
    latent = np.zeros((4, 2, 3), np.float32)
    latent[1, 0, 2] = 10.3 * 0.18215**2
    assert palette.to_bytes(latent)[0, 2].tolist() == [128, 138, 128, 128]


def test_the_payload_is_a_palette_and_indices_under_zlib() -> None:
    latent = natural(64, 64)
    payload = palette.encode(latent)
    content = zlib.decompress(payload)
    assert len(content) == 1024 + 4096
    assert payload == zlib.compress(content, 9)
    assert 4500 < len(payload) < 5200  # "about 4.97 kB"
    colours = np.frombuffer(content[:1024], np.uint8).reshape(256, 4)
    indices = np.frombuffer(content[1024:], np.uint8).reshape(64, 64)
    assert (palette.decode(payload, 64, 64) == palette.from_bytes(colours[indices])).all()


def test_golden_payload_is_read() -> None:
    """Fixed for ever: what was written once is read alike by everybody."""
    colours = (np.arange(1024) * 7 % 256).astype(np.uint8)
    indices = (np.arange(35) * 11 % 256).astype(np.uint8)
    latent = palette.decode(zlib.compress(colours.tobytes() + indices.tobytes(), 9), 5, 7)
    assert latent.dtype == np.float32
    assert hashlib.sha256(np.rint(latent / np.float32(0.18215**2) * 2).astype("<i4").tobytes()).hexdigest()[:16] == "3df8592a0b3644ae"


def test_floyd_and_steinberg_by_hand() -> None:
    """Two greys, 0 and 160: 100 becomes 160 and hands -60 on: 7/16 right, 3/16, 5/16 and 1/16 below."""
    image = np.full((2, 3, 4), 100, np.uint8)
    colours = np.zeros((256, 4), np.uint8)
    colours[1:] = 160
    # 100 -> 160, error -60; 100 - 26.25 = 73.75 -> 0, +73.75; 100 + 32.27 = 132.27 -> 160, -27.73
    # 100 - 18.75 + 13.83 = 95.08 -> 160, -64.92; 100 - 3.75 + 23.05 - 5.20 - 28.40 = 85.69 -> 160, -74.31;
    # 100 + 4.61 - 8.67 - 32.51 = 63.43 -> 0
    chosen = colours[palette.dither(image, colours)][..., 0]
    assert chosen.tolist() == [[160, 0, 160], [160, 160, 0]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2), (13, 7), (7, 40)])
def test_the_lines_of_the_dither_are_the_usual_order(height: int, width: int) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (height, width, 4)).astype(np.uint8)
    colours = rng.integers(0, 256, (256, 4)).astype(np.uint8)
    left = image.astype(np.float64)
    expected = np.empty((height, width), int)
    for y in range(height):
        for x in range(width):
            here = np.clip(left[y, x], 0, 255)
            expected[y, x] = ((colours - here) ** 2).sum(1).argmin()
            error = here - colours[expected[y, x]]
            for right, down, share in ((1, 0, 7), (-1, 1, 3), (0, 1, 5), (1, 1, 1)):
                if 0 <= x + right < width and y + down < height:
                    left[y + down, x + right] += error * share / 16
    assert (palette.dither(image, colours) == expected).all()


def test_few_colours_are_kept_as_they_are() -> None:
    image = palette.to_bytes(natural(4, 50))
    assert (palette.from_bytes(image) == palette.decode(palette.encode(palette.from_bytes(image)), 4, 50)).all()


def test_the_dither_costs_error_and_keeps_the_mean() -> None:
    latent = natural(64, 64)
    dithered, plain = (palette.decode(palette.encode(latent, dithered), 64, 64) for dithered in (True, False))
    assert ((plain - latent) ** 2).mean() < ((dithered - latent) ** 2).mean() < 0.1
    # what the eye would average: over 8x8 the dithered one is the nearer
    smooth = [(latent - other).reshape(4, 8, 8, 8, 8).mean((2, 4)) for other in (dithered, plain)]
    assert (smooth[0] ** 2).mean() < 0.5 * (smooth[1] ** 2).mean()


@pytest.mark.parametrize(
    "payload",
    [b"", b"no zlib at all", zlib.compress(bytes(1023)), zlib.compress(bytes(1024 + 99)), zlib.compress(bytes(1024 + 101)),
     zlib.compress(bytes(1024 + 100))[:-1], zlib.compress(bytes(1024 + 100)) + b"x", zlib.compress(bytes(1 << 26))],
)  # fmt: skip
def test_damage_is_told(payload: bytes) -> None:
    with pytest.raises(CorruptBlob):
        palette.decode(payload, 10, 10)


def test_a_large_latent_is_done_in_pieces() -> None:
    latent = natural(300, 280)
    assert ((palette.decode(palette.encode(latent), 300, 280) - latent) ** 2).mean() < 0.1
