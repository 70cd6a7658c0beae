from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.codec.codec import Codec, Frame
from service.codec.container import WHOLE_SCALE, scaled
from service.codec.scaling import HOPELESS_BPP, SCALES, SMALLEST_SIDE, first_scale, next_scale, scales_of
from service.manifest import ScaleRule, read_manifest

RULE = ScaleRule(three_quarters=170, half=200)
sides = st.integers(1, 9000)


@given(sides, sides)
def test_its_own_size_comes_first_and_no_other_is_tiny(width: int, height: int) -> None:
    first, *others = scales_of(width, height)
    assert first == WHOLE_SCALE
    assert others == sorted(others, reverse=True)
    assert all(min(scaled(width, height, scale)) >= SMALLEST_SIDE for scale in others)


@given(sides, sides, st.sampled_from(SCALES))
def test_a_side_never_vanishes_and_never_grows(width: int, height: int, scale: int) -> None:
    for side, coded in zip((width, height), scaled(width, height, scale), strict=True):
        assert 1 <= coded <= side
        assert side * scale / 16 <= coded < side * scale / 16 + 1


@given(sides, sides, st.integers(32, 1 << 20))
def test_it_begins_with_the_largest_that_is_not_hopeless(width: int, height: int, max_bytes: int) -> None:
    scale = first_scale(width, height, max_bytes)
    scales = scales_of(width, height)
    assert scale in scales

    def hopeless(other: int) -> bool:
        coded_width, coded_height = scaled(width, height, other)
        return 8 * max_bytes < HOPELESS_BPP * coded_width * coded_height

    assert all(hopeless(other) for other in scales if other > scale)
    assert not hopeless(scale) or scale == scales[-1]


@pytest.mark.parametrize(
    ("scale", "step_index", "then"),
    [
        (16, 169, 16),
        (16, 170, 12),
        (16, 199, 12),
        (16, 200, 8),
        (16, 255, 8),
        (12, 180, 8),
        (12, 210, 6),
        (8, 210, 4),
        (2, 255, 1),
        (1, 255, 1),
    ],
)
def test_the_next_scale_follows_from_the_step(scale: int, step_index: int, then: int) -> None:
    assert next_scale(3000, 2000, scale, step_index, RULE) == then


def test_where_a_picture_is_small_it_goes_as_far_as_it_can() -> None:
    assert next_scale(150, 100, 16, 255, RULE) == 12
    assert next_scale(150, 100, 12, 255, RULE) == 12
    assert next_scale(60, 3000, 16, 255, RULE) == 16


@given(sides, sides, st.integers(32, 1 << 16), st.lists(st.integers(0, 255), min_size=8, max_size=8))
def test_it_ends(width: int, height: int, max_bytes: int, indices: list[int]) -> None:
    scale = first_scale(width, height, max_bytes)
    tried = [scale]
    for index in indices:
        following = next_scale(width, height, scale, index, RULE)
        if following == scale:
            break
        scale = following
        tried.append(scale)
    assert tried == sorted(set(tried), reverse=True)


def test_a_model_without_a_rule_leaves_pictures_as_they_are(small_model: Path) -> None:
    codec = Codec(small_model, read_manifest(small_model))
    latent = np.random.default_rng(0).normal(size=codec.latent_shape(320, 320)).astype(np.float32)
    assert codec.first_scale(8000, 6000, 100) == WHOLE_SCALE
    assert codec.better_scale(latent, Frame(320, 320), 100) == WHOLE_SCALE
    codec.manifest = codec.manifest.model_copy(update={"scaling": RULE})
    assert codec.first_scale(8000, 6000, 100) < WHOLE_SCALE
    assert codec.better_scale(latent, Frame(320, 320), 100) == 8
    assert codec.better_scale(latent, Frame(320, 320), 1 << 20) == WHOLE_SCALE


def test_half_the_sides_is_for_coarser_steps() -> None:
    with pytest.raises(ValidationError, match="three quarters"):
        ScaleRule(three_quarters=200, half=199)
