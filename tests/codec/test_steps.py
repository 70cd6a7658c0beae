import math

import numpy as np
import pytest

from service.codec.steps import INVERSE_STEP_FIXED, LARGEST_SYMBOL, STEP_COUNT, STEP_FIXED, dequantise, quantise, step_size


def test_fixed_point_agrees_with_the_formula() -> None:
    for index in range(STEP_COUNT):
        assert abs(STEP_FIXED[index] - 4096 * step_size(index)) <= 0.5 + 1e-6
        assert abs(INVERSE_STEP_FIXED[index] - 4096 / step_size(index)) <= 0.5 + 1e-6


def test_steps_are_an_octave_apart_every_32() -> None:
    assert step_size(128) == 1.0
    assert math.isclose(step_size(160) / step_size(128), 2.0)


@pytest.mark.parametrize("index", [0, 100, 128, 255])
def test_quantising_errs_by_at_most_half_a_step(index: int) -> None:
    latent = np.random.default_rng(0).normal(size=(4, 9, 7)).astype(np.float32)
    restored = dequantise(quantise(latent, index), index)
    assert np.abs(restored - latent).max() <= step_size(index) / 2 * 1.001


def test_symbols_fit_sixteen_bits() -> None:
    wild = np.array([1e9, -1e9], np.float32)
    assert quantise(wild, 0).tolist() == [LARGEST_SYMBOL, -LARGEST_SYMBOL]
