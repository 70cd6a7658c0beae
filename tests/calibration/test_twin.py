"""The float context model that is trained and the integers that are shipped must say the same."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.calibration.context import ContextModel, bits, keep_most_used, rescale
from service.calibration.integers import integer_passes
from service.codec.entropy import EntropyCoder
from service.codec.profile import context_predictor
from service.codec.steps import dequantise, quantise, step_size
from service.codec.tables import logistic_counts
from training import config as configuration
from training.data import Pictures, is_validation

CONFIG = Path(configuration.__file__).with_name("bundled.toml")


def model(seed: int = 0) -> ContextModel:
    torch.manual_seed(seed)
    context = ContextModel([2, 3], [16, 12], [5, 3])
    with torch.no_grad():
        for item in context.passes:
            item.out.weight.mul_(4)
    return context


def latents(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).laplace(scale=0.8, size=shape).astype(np.float32)


@pytest.mark.parametrize("step_index", [30, 100, 140])
def test_integers_cost_what_the_float_model_says(step_index: int) -> None:
    context = model()
    tensors = integer_passes(context) | {"counts": logistic_counts()}
    coder = EntropyCoder(context_predictor(tensors, 5))
    symbols = quantise(latents((5, 32, 32)), step_index)
    known = torch.from_numpy(dequantise(symbols, step_index))[None]
    with torch.no_grad():
        predicted = float(context(known, known, torch.tensor([step_size(step_index)])))
    assert coder.ideal_bits(symbols, step_index) == pytest.approx(predicted, rel=0.02)


def test_bits_are_those_of_a_distribution() -> None:
    """Over all cells the probabilities sum to one."""
    values = torch.arange(-400, 401) * 0.5
    cost = bits(values, torch.tensor(0.3), torch.tensor(math.log(1.2)), torch.tensor(0.5))
    assert float((2**-cost).sum()) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_units_that_do_nothing_are_the_ones_left_out() -> None:
    wide, narrow = model(), ContextModel([2, 3], [10, 12], [5, 3])
    for item in wide.passes[:4]:  # those of the first group, 16 wide
        item.out.weight[:, 3:9] = 0
        item.middle.weight[:, [0, 2, 4, 6, 8, 15]] = 0
    keep_most_used(narrow, wide)
    known, step = torch.randn(2, 5, 6, 8).round(), torch.tensor([1.0, 2.0])
    assert torch.allclose(narrow(known, known, step), wide(known, known, step), rtol=1e-4)
    with pytest.raises(ValueError, match="cannot become"):
        keep_most_used(wide, narrow)


def test_rescaling_changes_nothing_but_the_unit() -> None:
    context, scaled = model(), model()
    rescale(scaled, 2.5)
    known = torch.from_numpy(latents((5, 8, 8)))[None]
    step = torch.tensor([0.7])
    with torch.no_grad():
        assert float(scaled(known / 2.5, known / 2.5, step / 2.5)) == pytest.approx(float(context(known, known, step)), rel=1e-3)


def test_the_shipped_configuration_reads() -> None:
    config = configuration.load(CONFIG)
    assert sum(config.context.group_sizes) == config.autoencoder.latent_channels


def test_a_wrong_key_in_a_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(CONFIG.read_text().replace("hidden =", "hiden ="))
    with pytest.raises(SystemExit, match="hiden"):
        configuration.load(tmp_path / "x.toml")


def test_the_split_is_by_name_and_complete(tmp_path: Path) -> None:
    for index in range(40):
        Image.fromarray(np.full((64, 80, 3), index * 6, np.uint8)).save(tmp_path / f"{index}.png")
    data = configuration.Data(crop=32, largest_downscale=2.0, graphics_percent=10, validation_percent=25)
    train, held = (Pictures([tmp_path], data, validation=flag) for flag in (False, True))
    assert len(train.pictures) + len(held.pictures) == 40
    assert len(held.pictures) == sum(is_validation(f"{index}.png", 25) for index in range(40)) > 0
    crop = train.random_crop(random.Random(0))
    assert crop.shape == (32, 32, 3)
    assert next(train.batches(3, 0)).shape == (3, 3, 32, 32)
