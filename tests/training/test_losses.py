"""What the auto-encoder is trained on: each part by itself, against its own definition."""

import dataclasses
import math

import pytest
import torch

from training import config as configuration
from training.__main__ import DEFAULT_CONFIG
from training.losses import LEAST_MSE, Distortion


@pytest.fixture
def decibels() -> Distortion:
    """A loss of nothing but the logarithm of the squared error."""
    without = dict.fromkeys(("mse", "structure", "ssimulacra", "feature"), 0.0)
    return Distortion(dataclasses.replace(configuration.load(DEFAULT_CONFIG).loss, **without, log_mse=0.2, fine_log_mse=0.2))


def off_by(levels: float, distortion: Distortion, step: float = 2.0) -> float:
    pixels = torch.zeros(2, 3, 256, 256)
    loss, parts = distortion(pixels + levels / 127.5, pixels, torch.full((2,), step))
    assert math.isclose(float(parts["mse"]), levels**2, rel_tol=1e-3)
    return float(loss)


def test_decibels_count_alike_in_smooth_and_busy_crops_at_every_step(decibels: Distortion) -> None:
    assert math.isclose(off_by(10, decibels), 0.2 * math.log(100 + LEAST_MSE), rel_tol=1e-3)
    six_decibels = 0.2 * math.log(4)
    for smaller in (10, 20, 40):
        assert math.isclose(off_by(2 * smaller, decibels) - off_by(smaller, decibels), six_decibels, rel_tol=0.03)
    assert off_by(10, decibels, step=8.0) == off_by(10, decibels)


def test_decibels_count_for_more_where_nothing_else_counts(decibels: Distortion) -> None:
    onset = decibels.config.perceptual_onset
    uneven = Distortion(dataclasses.replace(decibels.config, fine_log_mse=0.6))
    for step, weight in ((onset / 100, 0.6), (onset, 0.4), (onset * 100, 0.2)):
        assert math.isclose(off_by(10, uneven, step), weight * math.log(100 + LEAST_MSE), rel_tol=2e-3)


def test_what_cannot_be_seen_is_not_worth_bits(decibels: Distortion) -> None:
    assert off_by(0.2, decibels) - off_by(0.1, decibels) < 0.02 * 0.2 * math.log(4)
