import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.tiling import Mosaic, spans, tiles


@given(length=st.integers(1, 5000), side=st.integers(16, 1024), margin=st.integers(0, 128))
def test_cores_cover_everything_once_and_lie_inside_their_windows(length: int, side: int, margin: int) -> None:
    found = spans(length, side, margin)
    assert found[0].core_start == 0
    assert found[-1].core_end == length
    assert all(left.core_end == right.core_start for left, right in itertools.pairwise(found))
    assert len({span.window_end - span.window_start for span in found}) == 1
    for span in found:
        assert 0 <= span.window_start <= span.core_start < span.core_end <= span.window_end <= length
        if len(found) > 1:
            assert span.window_start == 0 or span.core_start - span.window_start >= margin
            assert span.window_end == length or span.window_end - span.core_end >= margin


@pytest.mark.parametrize(("height", "width"), [(700, 300), (300, 700), (900, 901), (513, 2000)])
def test_equal_pieces_paste_without_a_seam(height: int, width: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    canvas = np.zeros_like(picture)
    mosaic = Mosaic(canvas, 16)
    for tile in tiles(height, width, 256, 32):
        mosaic.put(tile, picture[tile.rows.window, tile.columns.window])
    assert (canvas == picture).all()


def test_unequal_pieces_fade_into_each_other() -> None:
    canvas = np.zeros((64, 700, 3), np.uint8)
    mosaic = Mosaic(canvas, 16)
    for index, tile in enumerate(tiles(64, 700, 256, 32)):
        width = tile.columns.window_end - tile.columns.window_start
        mosaic.put(tile, np.full((64, width, 3), 100 + 40 * index, np.uint8))
    row = canvas[32, :, 0].astype(int)
    assert np.abs(np.diff(row)).max() <= 3, "no step larger than the ramp's"
    assert row[0] == 100
    assert row[-1] == 180


@pytest.mark.parametrize(("side", "margin"), [(512, 128), (1024, 128)])
def test_windows_that_disagree_leave_no_step_on_a_gradient(side: int, margin: int) -> None:
    """A network that normalises over its window shifts each by something else, here by up to 40 levels: a seam stays under one level."""
    height, width = side + 300, 2 * side + 100
    gradient = np.linspace(60, 180, width)[None, :, None] + np.linspace(0, 15, height)[:, None, None] + np.zeros(3)
    canvas, rng = np.full((height, width, 3), np.nan), np.random.default_rng(0)
    mosaic = Mosaic(canvas, margin // 2)
    for tile in tiles(height, width, side, margin):
        mosaic.put(tile, gradient[tile.rows.window, tile.columns.window] + rng.uniform(-20, 20))
    shift = canvas - gradient
    assert np.ptp(shift) > 10
    assert max(np.abs(np.diff(shift, axis=axis)).max() for axis in (0, 1)) < 1


def test_latents_are_blended_as_floats() -> None:
    canvas = np.full((1, 40, 4), np.nan, np.float32)
    mosaic = Mosaic(canvas, 2)
    for number, tile in enumerate(tiles(1, 40, 16, 4)):
        mosaic.put(tile, np.full((1, 24, 4), number, np.float32))
    assert canvas[0, 12:20, 0].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
