import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadParameter
from service.imaging.picture import Picture
from service.imaging.resizing import FITS, LARGEST_BOX, Box, Fit, enlarge, plan, resize, shrink
from tests.conftest import make_picture, psnr


@pytest.mark.parametrize(
    ("box", "size"),
    [
        (Box(40), (40, 30)),
        (Box(None, 30), (40, 30)),
        (Box(40, 40), (40, 30)),
        (Box(40, 12), (16, 12)),
        (Box(400), (80, 60)),
        (Box(400, 400), (80, 60)),
        (Box(1), (1, 1)),
        (Box(40, 40, "cover"), (40, 40)),
        (Box(160, 160, "cover"), (60, 60)),
        (Box(160, 40, "cover"), (80, 20)),
        (Box(40, 40, "contain"), (40, 40)),
        (Box(100, 100, "contain"), (100, 100)),
        (Box(40, 40, "fill"), (40, 40)),
        (Box(160, 30, "fill"), (80, 15)),
        (Box(80, 60, "fill"), (80, 60)),
    ],
)
def test_sizes(box: Box, size: tuple[int, int]) -> None:
    shown = resize(Picture(make_picture(60, 80)), box)
    assert (shown.width, shown.height) == size


sides = st.integers(1, 5000)


@given(sides, sides, st.integers(1, LARGEST_BOX), st.integers(1, LARGEST_BOX), st.sampled_from(FITS))
def test_nothing_is_enlarged_and_nothing_invented(width: int, height: int, w: int, h: int, fit: Fit) -> None:
    made = plan(width, height, Box(w, h, fit))
    left, top, right, bottom = made.part
    assert 0 <= left < right <= width + 1e-6
    assert 0 <= top < bottom <= height + 1e-6
    assert made.size[0] <= max(1, right - left) + 0.5
    assert made.size[1] <= max(1, bottom - top) + 0.5
    assert made.size[0] <= min(w, width) and made.size[1] <= min(h, height)
    assert made.canvas == ((w, h) if fit == "contain" else made.size)
    if fit == "cover" and min(made.size) > 20:  # both directions are scaled alike
        assert (right - left) / made.size[0] == pytest.approx((bottom - top) / made.size[1], rel=0.06)


def test_what_is_left_as_it_is_costs_nothing() -> None:
    picture = Picture(make_picture(60, 80))
    assert resize(picture, Box(80)) is picture
    assert resize(picture, Box(500, 500)) is picture


def test_cover_keeps_the_middle() -> None:
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, 30:60] = 200
    shown = resize(Picture(pixels), Box(20, 20, "cover")).rgb
    assert shown.shape == (20, 20, 3)
    assert (shown[:, 8:12] > 195).all()
    assert (shown[:, 0] < 40).all() and (shown[:, -1] < 40).all()


def test_contain_lays_the_picture_on_a_transparent_ground() -> None:
    shown = resize(Picture(make_picture(60, 80)), Box(40, 40, "contain"))
    assert shown.alpha is not None
    assert (shown.alpha[:5] == 0).all() and (shown.alpha[5:35] == 255).all() and (shown.alpha[35:] == 0).all()
    assert resize(Picture(make_picture(60, 80)), Box(40, 30, "contain")).alpha is None
    upright = resize(Picture(make_picture(80, 60)), Box(40, 40, "contain")).alpha
    assert upright is not None
    assert (upright[:, :5] == 0).all() and (upright[:, 5:35] == 255).all() and (upright[:, 35:] == 0).all()


def test_hidden_colours_do_not_bleed() -> None:
    rgb, alpha = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    rgb[:, :32], rgb[:, 32:] = (255, 0, 0), (0, 255, 0)
    alpha[:, :32] = 255
    shown = resize(Picture(rgb, alpha), Box(16))
    assert shown.alpha is not None
    seen = shown.rgb[shown.alpha > 20]
    assert (seen[:, 1] < 10).all()


def test_shrinking_keeps_the_picture() -> None:
    pixels = make_picture(128, 192)
    mean = pixels.reshape(64, 2, 96, 2, 3).mean((1, 3)).round().astype(np.uint8)
    assert psnr(mean, resize(Picture(pixels), Box(96)).rgb) > 25


@pytest.mark.parametrize("box", [(None, None, "inside"), (0, None, "inside"), (LARGEST_BOX + 1, 5, "inside"), (5, None, "cover")])
def test_boxes_that_cannot_be(box: tuple[int | None, int | None, Fit]) -> None:
    with pytest.raises(BadParameter):
        Box(*box)


def test_smaller_and_back(photo: np.ndarray) -> None:
    height, width = photo.shape[:2]
    small = shrink(photo, width // 2, height // 2)
    assert small.shape == (height // 2, width // 2, 3)
    back = enlarge(small, width, height)
    assert back.shape == photo.shape
    assert psnr(back, photo) > 28
    assert shrink(photo, width, height) is photo
    assert enlarge(photo, width, height) is photo
