"""Rivals and figures of quality."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from service.comparison import contest, features, rivals
from service.comparison.features import FeatureDistance
from service.comparison.metrics import measure
from service.comparison.rivals import RIVALS, at_least, avif, search
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
    encode, size, photo = RIVALS[name], 2500, np.ascontiguousarray(photo[60:310, 100:350])
    content, shown = at_least(encode, photo, size)
    assert len(content) >= size
    assert shown.shape == photo.shape
    sizes = {len(encode(Image.fromarray(photo), quality)) for quality in range(0, 100, 5)}
    assert len(content) <= min(each for each in sizes if each >= size)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("size", [1, 4000, 10**9])
def test_in_steps_the_same_file_is_found(name: str, size: int, photo: Plane) -> None:
    async def run(call: Callable[[], Any]) -> Any:
        return call()

    small = np.ascontiguousarray(photo[60:230, 100:300])
    entry = asyncio.run(contest.enter(name, small, size, run))
    content, shown = at_least(RIVALS[name], small, size)
    assert entry.content == content
    assert (entry.shown == shown).all()
    assert entry.smallest == (size == 1)
    assert (entry.quality == 100) == (size == 10**9)


def test_avif_is_one_tile_and_the_same_on_any_number_of_cores(photo: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles make a large picture sooner, but cost bytes that the rival need not spend."""
    picture = Image.fromarray(photo).resize((768, 512))
    found = avif(picture, 15)
    out = io.BytesIO()
    picture.save(out, "AVIF", quality=15, speed=4, subsampling="4:2:0", max_threads=2)
    assert len(found) < len(out.getvalue())
    monkeypatch.setattr(rivals, "CORES", 1)
    assert avif(picture, 15) == found


@pytest.mark.parametrize("answer", [0, 1, 37, 99, 100])
def test_a_good_guess_saves_encodes(answer: int) -> None:
    def tries(likely: int | None) -> int:
        steps, count = search(10 * answer + 5, likely), 0
        quality = next(steps)
        try:
            while True:
                count += 1
                quality = steps.send(10 * quality + 5)
        except StopIteration as found:
            assert found.value == answer
        return count

    assert tries(None) <= 7
    assert tries(answer) <= 2
    for guess in range(101):
        assert tries(guess) <= 14, "at worst as many strides as halves, and the halves"
