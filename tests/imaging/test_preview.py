import base64
import io

import numpy as np
import pytest
from PIL import Image

from service.imaging.picture import Picture
from service.imaging.preview import LARGEST_URI, glance
from tests.conftest import Plane, make_picture

NOISE = np.random.default_rng(0)


def shown(uri: str) -> Image.Image:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize("size", [(60, 80), (80, 60), (1, 1), (3, 900), (900, 2), (24, 24), (300, 300)])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_preview_is_small_and_has_the_shape_of_the_picture(size: tuple[int, int], alpha: bool) -> None:
    pixels = NOISE.integers(0, 256, (*size, 3)).astype(np.uint8)
    picture = Picture(pixels, NOISE.integers(0, 256, size).astype(np.uint8) if alpha else None)
    preview = glance(picture).preview
    assert len(preview) <= LARGEST_URI
    image = shown(preview)
    assert max(image.size) <= 24
    assert image.size[0] / image.size[1] == pytest.approx(size[1] / size[0], rel=0.1) or min(image.size) == 1


def test_a_preview_looks_like_the_picture(photos: dict[str, Plane]) -> None:
    for pixels in photos.values():
        image = np.asarray(shown(glance(Picture(pixels)).preview).convert("RGB")).astype(float)
        height, width = image.shape[:2]
        mean = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)).astype(float)
        assert np.abs(image - mean).mean() < 20


def test_the_dominant_colour() -> None:
    pixels = np.full((40, 60, 3), (10, 200, 30), np.uint8)
    pixels[:10] = (250, 0, 0)
    assert glance(Picture(pixels)).color == "#0ac81e"


def test_what_cannot_be_seen_has_no_colour() -> None:
    pixels, alpha = make_picture(40, 40), np.zeros((40, 40), np.uint8)
    pixels[:8, :8], alpha[:8, :8] = (200, 30, 20), 255
    assert glance(Picture(pixels, alpha)).color == "#c81e14"
    assert glance(Picture(pixels, np.zeros((40, 40), np.uint8))).color == "#ffffff"
