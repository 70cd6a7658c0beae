import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.codec import ground
from service.codec.ground import FEWEST, Mask
from service.codec.steps import Latent, quantise, step_size
from service.errors import CorruptBlob

STEP = 110


def disc(height: int, width: int) -> Mask:
    """All but a disc in the middle."""
    y, x = np.mgrid[0:height, 0:width]
    mask: Mask = (y - height / 2) ** 2 + (x - width / 2) ** 2 > (min(height, width) / 3) ** 2
    return mask


def on_flat(mask: Mask, channels: int = 5) -> Latent:
    """A natural latent where there is no ground, the same everywhere else but for the last digits of a float."""
    rng = np.random.default_rng(1)
    latent = rng.laplace(scale=0.7, size=(channels, *mask.shape))
    noise = rng.normal(scale=1e-5, size=(channels, int(mask.sum())))
    latent[:, mask] = (np.arange(channels) - 2)[:, None] * 0.5 * step_size(STEP) + noise  # on the edges of cells
    return latent.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), share=st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]), seed=st.integers(0, 1000))
def test_any_bitmap_comes_back(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert (ground.read(ground.write(mask), height, width) == mask).all()


def test_golden_bitmap() -> None:
    """A change here means that files already written can no longer be read: raise the format version."""
    content = ground.write(disc(33, 21))
    assert f"{len(content)} {hashlib.sha256(content).hexdigest()[:16]}" == "16 372e559ecb104fab"


def test_a_bitmap_is_small() -> None:
    assert len(ground.write(disc(64, 64))) < 70
    assert len(ground.write(np.ones((64, 64), bool))) < 8


def found(latent: Latent) -> Mask | None:
    where = ground.find(latent)
    return None if where is None else ground.around(latent, quantise(latent, STEP), where, step_size(STEP))


def test_it_is_found_where_it_is_and_rounded_alike() -> None:
    mask = disc(30, 20)
    latent = on_flat(mask)
    flat, symbols, where = found(latent), quantise(latent, STEP), ground.find(latent)
    assert flat is not None and where is not None
    assert (flat == mask).all()
    assert len(np.unique(symbols[:, mask], axis=1).T) > 1
    ground.around(latent, symbols, where, step_size(STEP))
    assert len(np.unique(symbols[:, mask], axis=1).T) == 1
    assert np.abs(symbols * step_size(STEP) - latent).max() < 0.51 * step_size(STEP)


def test_of_several_the_largest_is_found() -> None:
    latent = on_flat(disc(30, 30))
    latent[:, 10:20, 10:20] = 7
    flat = found(latent)
    assert flat is not None
    assert (flat == disc(30, 30)).all()


def test_where_it_does_not_pay_there_is_none() -> None:
    assert ground.find(on_flat(np.zeros((30, 30), bool))) is None
    few = np.zeros((30, 30), bool)
    few[2, : FEWEST - 1] = True
    assert ground.find(on_flat(few)) is None
    scattered = np.random.default_rng(2).random((30, 30)) < 0.5
    assert ground.find(on_flat(scattered)) is None  # its bitmap costs a bit each
    assert ground.find(np.zeros((3, 1, 1), np.float32)) is None
    assert ground.find(np.zeros((3, 40, 1), np.float32)) is None


def test_one_of_the_first_phase_is_what_the_others_are_like() -> None:
    mask = disc(30, 30)
    mask[0] = False
    mask[2, :3] = False
    assert ground.pattern(mask) == (2, 4)
    odd = np.zeros((30, 30), bool)
    odd[1::2] = True
    with pytest.raises(CorruptBlob, match="no position"):
        ground.pattern(odd)
    assert ground.find(on_flat(odd)) is None


def test_damaged_bitmaps_never_crash() -> None:
    rng, whole = random.Random(3), ground.write(disc(30, 30))
    for _ in range(300):
        content = bytearray(whole[: rng.randrange(len(whole) + 1)])
        for _ in range(rng.randrange(4)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            assert ground.read(bytes(content), 30, 30).shape == (30, 30)
        except CorruptBlob:
            pass
