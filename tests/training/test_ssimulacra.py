import io

import numpy as np
import pytest
import torch
from PIL import Image
from ssimulacra2 import compute_ssimulacra2

from tests.conftest import Plane
from training.ssimulacra import ssimulacra2


def tensor(pixels: Plane) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def coded(pixels: Plane, quality: int) -> Plane:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out).convert("RGB"))


def bmp(pixels: Plane) -> io.BytesIO:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    return out


@pytest.mark.parametrize("quality", [15, 40, 80])
def test_it_is_the_benchmarks_measure_but_for_the_edges(photos: dict[str, Plane], quality: int) -> None:
    original = np.ascontiguousarray(photos["astronaut"][:512, :512])
    other = coded(original, quality)
    assert ssimulacra2(tensor(original), tensor(other)).item() == pytest.approx(compute_ssimulacra2(bmp(original), bmp(other)), abs=4)


@pytest.mark.parametrize("finest", [0, 1])
def test_better_is_higher_and_equal_is_all_but_perfect(photos: dict[str, Plane], finest: int) -> None:
    crops = [np.ascontiguousarray(photo[:256, :256]) for photo in photos.values()]
    original = torch.cat([tensor(crop) for crop in crops])
    scores = torch.stack([ssimulacra2(original, torch.cat([tensor(coded(c, quality)) for c in crops]), finest) for quality in (10, 30, 90)])
    assert (scores.diff(dim=0) > 0).all()
    assert ssimulacra2(original, original, finest) == pytest.approx(
        torch.full((len(crops),), 98.0), abs=1
    )  # what is under the root is never 0


def test_gradients_lead_uphill(photo: Plane) -> None:
    original = tensor(np.ascontiguousarray(photo[:256, :256]))
    other = tensor(coded(np.ascontiguousarray(photo[:256, :256]), 20)).requires_grad_()
    before = ssimulacra2(original, other).sum()
    before.backward()
    assert other.grad is not None
    assert other.grad.isfinite().all()
    ahead = other.detach() + 0.02 * other.grad / other.grad.abs().max()
    assert ssimulacra2(original, ahead).item() > before.item()


def test_black_white_and_beyond_are_finite() -> None:
    flat = torch.zeros(1, 3, 256, 256)
    for level in (-1.0, 1.0, -1.5, 1.5):
        other = (flat + level).requires_grad_()
        score = ssimulacra2(flat, other).sum()
        score.backward()
        assert score.isfinite()
        assert other.grad is not None
        assert other.grad.isfinite().all()
