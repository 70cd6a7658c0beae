import numpy as np
import pytest

from service.imaging import flat
from service.imaging.picture import Plane

CELL = 16


def page(height: int, width: int, colour: tuple[int, int, int] = (255, 255, 255)) -> Plane:
    """Noise in the middle of a flat page."""
    rgb = np.full((height, width, 3), colour, np.uint8)
    middle = rgb[height // 4 : -height // 4, width // 4 : -width // 4]
    middle[...] = np.random.default_rng(1).integers(0, 256, middle.shape)
    return rgb


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (243, 240, 236), (12, 80, 200)])
def test_the_ground_is_where_no_pixel_of_a_cell_is_of_another_colour(colour: tuple[int, int, int]) -> None:
    found = flat.find(page(160, 192, colour), CELL)
    assert found is not None
    mask, told = found
    expected = np.ones((10, 12), bool)
    expected[2:8, 3:9] = False  # 160 / 4 is within the third cell
    assert (mask == expected).all()
    assert told == colour


def test_what_a_jpeg_leaves_is_ground_and_a_shadow_is_not() -> None:
    rgb = np.full((160, 160, 3), 250, np.uint8)
    rgb[4:6, 4:6], rgb[20:22, 4:6] = 256 - 12, 243  # pixels 6 and 7 levels off, in two cells
    rgb[64:80] = 249  # evenly a level darker
    found = flat.find(rgb, CELL)
    assert found is not None
    mask, colour = found
    assert colour == (250, 250, 250)
    assert mask[0, 0]
    assert not mask[1, 0]
    assert not mask[4].any()
    assert mask.sum() == 100 - 1 - 10


def test_photographs_have_none() -> None:
    rng = np.random.default_rng(2)
    assert flat.find(rng.integers(0, 256, (160, 160, 3)).astype(np.uint8), CELL) is None
    grain = np.clip(rng.normal(240, 2, (160, 160, 3)), 0, 255).astype(np.uint8)
    assert flat.find(grain, CELL) is None
    slope = np.repeat(np.arange(160, dtype=np.uint8)[:, None, None], 160, 1).repeat(3, 2)
    assert flat.find(slope, CELL) is None
    assert flat.find(np.full((16, 16, 3), 255, np.uint8), CELL) is None  # few


def test_corners_alone_make_no_ground() -> None:
    """The quick look sees four pixels of each cell."""
    rgb = np.random.default_rng(3).integers(0, 256, (160, 160, 3)).astype(np.uint8)
    for row in (0, CELL - 1):
        for column in (0, CELL - 1):
            rgb[row::CELL, column::CELL] = 200
    assert flat.find(rgb, CELL) is None


def test_it_gets_its_colour_back() -> None:
    """Exactly, and not a level elsewhere; in between evenly, whatever the picture's last cells lack."""
    mask = np.zeros((3, 4), bool)
    mask[:, :2] = True
    decoded = np.full((40, 60, 3), (250, 100, 0), np.uint8)
    decoded[:, 32:] = 7
    before = decoded.copy()
    laid = flat.lay(decoded, mask, (255, 100, 255), CELL)
    assert (decoded == before).all()
    assert laid.dtype == np.uint8
    assert (laid[:, :CELL] == (255, 100, 255)).all()
    assert (laid[:, 2 * CELL :] == 7).all()
    fading = laid[:, CELL : 2 * CELL]
    assert (fading == fading[:1]).all()
    shares = (15.5 - np.arange(CELL)) / CELL
    assert fading[0, :, 2].astype(float) == pytest.approx(255 * shares, abs=0.51)
    assert fading[0, :, 0].astype(float) == pytest.approx(250 + 5 * shares, abs=0.51)


def test_a_corner_fades_both_ways() -> None:
    mask = np.ones((3, 3), bool)
    mask[0, 0] = False
    laid = flat.lay(np.zeros((48, 48, 3), np.uint8), mask, (255, 255, 255), CELL)
    beside = laid[CELL : 2 * CELL, CELL : 2 * CELL, 0].astype(float)  # touches it with one corner
    near = (15.5 - np.arange(CELL)) / CELL
    assert beside == pytest.approx(255 * (1 - near[:, None] * near), abs=0.51)
    assert not laid[:CELL, :CELL].any()
    assert (laid[2 * CELL :] == 255).all()
