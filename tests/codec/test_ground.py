import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.codec import ground
from service.codec.ground import Ground, Mask, worth_sending
from service.errors import CorruptBlob


def disc(height: int, width: int) -> Mask:
    """All but a disc in the middle."""
    y, x = np.mgrid[0:height, 0:width]
    mask: Mask = (y - height / 2) ** 2 + (x - width / 2) ** 2 > (min(height, width) / 3) ** 2
    return mask


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), share=st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]), seed=st.integers(0, 1000))
def test_any_bitmap_comes_back(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert (ground.read_mask(ground.write_mask(mask), height, width) == mask).all()


def test_golden_bitmap() -> None:
    """A change here means that files already written can no longer be read: raise the format version."""
    content = ground.write_mask(disc(33, 21))
    assert f"{len(content)} {hashlib.sha256(content).hexdigest()[:16]}" == "16 372e559ecb104fab"


def test_a_bitmap_is_small() -> None:
    assert len(ground.write_mask(disc(64, 64))) < 70
    assert len(ground.write_mask(np.ones((64, 64), bool))) < 8


def test_a_ground_comes_back_with_its_colour() -> None:
    mask = disc(33, 21)
    content = ground.write(Ground(mask, (255, 250, 3)))
    assert content == b"\xff\xfa\x03" + ground.write_mask(mask)
    again = ground.read(content, 33, 21)
    assert (again.mask == mask).all()
    assert again.colour == (255, 250, 3)
    with pytest.raises(CorruptBlob, match="no colour"):
        ground.read(content[:2], 33, 21)


def test_what_is_left_out_lies_inside() -> None:
    """No position beside one that is not ground; along the border of the picture, where there is nothing beside, all."""
    mask = np.ones((6, 7), bool)
    mask[2, 3] = False
    inside = Ground(mask, (0, 0, 0)).inside
    assert inside is not None
    expected = np.ones((6, 7), bool)
    expected[1:4, 2:5] = False
    assert (inside == expected).all()
    odd = np.zeros((9, 9), bool)
    odd[2:5, 2:5] = True  # but for (3, 3) all have others beside them
    assert Ground(odd, (0, 0, 0)).inside is None


def test_without_a_colour_all_of_it_is_left_out() -> None:
    """As in files of version 5."""
    mask = disc(30, 20)
    assert (Ground(mask, None).inside == mask).all()


def test_it_is_sent_where_that_pays() -> None:
    white = (255, 255, 255)
    assert worth_sending(disc(30, 20), white) is not None
    assert worth_sending(np.zeros((30, 30), bool), white) is None
    few = np.zeros((30, 60), bool)
    few[:3, :17] = True  # two rows of 16 inside
    assert worth_sending(few, white) is not None
    few[2] = False
    assert worth_sending(few, white) is None
    scattered = np.random.default_rng(2).random((30, 30)) < 0.7
    assert worth_sending(scattered, white) is None  # hardly any is inside
    assert worth_sending(np.ones((1, 1), bool), white) is None
    assert worth_sending(np.ones((1, 40), bool), white) is not None


def test_one_of_the_first_phase_is_what_the_others_are_like() -> None:
    mask = disc(30, 30)
    mask[0] = False
    mask[2, :3] = False
    assert ground.pattern(mask) == (2, 4)
    odd = np.zeros((30, 30), bool)
    odd[1::2] = True
    with pytest.raises(CorruptBlob, match="no position"):
        ground.pattern(odd)


def test_damaged_bitmaps_never_crash() -> None:
    rng, whole = random.Random(3), ground.write_mask(disc(30, 30))
    for _ in range(300):
        content = bytearray(whole[: rng.randrange(len(whole) + 1)])
        for _ in range(rng.randrange(4)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            assert ground.read_mask(bytes(content), 30, 30).shape == (30, 30)
        except CorruptBlob:
            pass
