"""Rivals and figures of quality."""

import numpy as np
import pytest
import torch
from PIL import Image

from service.comparison import features
from service.comparison.features import FeatureDistance
from service.comparison.metrics import measure
from service.comparison.rivals import RIVALS, at_least
from tests.conftest import Plane


def test_folding_does_not_change_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = torch.rand(2, 2, 3, 96, 96) * 2 - 1
    folded = FeatureDistance("lite0")(left, right)
    monkeypatch.setattr(features, "_fold", lambda network: network)
    plain = FeatureDistance("lite0")(left, right)
    assert torch.allclose(folded, plain, rtol=1e-3)
    assert (plain > 0.1).all()


def test_worse_pictures_measure_worse(photo: Plane) -> None:
    rng = np.random.default_rng(0)
    noisy = [np.clip(photo + rng.normal(0, sigma, photo.shape), 0, 255).astype(np.uint8) for sigma in (3, 30)]
    same, little, much = measure(photo, photo), measure(photo, noisy[0]), measure(photo, noisy[1])
    assert same.psnr > little.psnr > much.psnr
    assert same.ms_ssim > little.ms_ssim > much.ms_ssim
    assert same.ssimulacra2 > little.ssimulacra2 > much.ssimulacra2
    assert same.feature < little.feature < much.feature


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_gets_the_lowest_quality_with_at_least_our_bytes(name: str, photo: Plane) -> None:
    encode = RIVALS[name]
    size = 6000
    content, shown = at_least(encode, photo, size)
    assert len(content) >= size
    assert shown.shape == photo.shape
    sizes = {len(encode(Image.fromarray(photo), quality)) for quality in range(0, 100, 5)}
    assert len(content) <= min(each for each in sizes if each >= size)
