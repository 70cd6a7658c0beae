import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.codec.context import ContextPredictor, LaplacePredictor, PassWeights, Predictor
from service.codec.entropy import EntropyCoder
from service.codec.lattice import PHASES
from service.codec.steps import LARGEST_SYMBOL, Symbols, quantise
from service.codec.tables import laplace_counts, logistic_counts
from service.errors import CorruptBlob


def random_context(windows: tuple[int, ...] = (5, 5)) -> ContextPredictor:
    """A context network of random integers: nothing in the coder may depend on its being a good one."""
    group_sizes, hidden, rng = (2, 3), 6, np.random.default_rng(5)
    passes = []
    for group, size in enumerate(group_sizes):
        known = sum(group_sizes[: group + 1])
        for phase in range(len(PHASES)):
            inputs = known * windows[group] ** 2
            shapes = {
                "window": (inputs, hidden), "window_bias": (hidden,), "window_step": (hidden,), "middle": (hidden, hidden),
                "middle_bias": (hidden,), "out": (hidden, 2 * size), "out_bias": (2 * size,),
            }  # fmt: skip
            tensors = {name: rng.integers(-900, 900, shape) for name, shape in shapes.items()}
            passes.append(PassWeights.from_file(tensors, group_sizes, group * len(PHASES) + phase))
    return ContextPredictor(group_sizes, windows, passes, logistic_counts())


PREDICTORS: dict[str, Predictor] = {
    "laplace": LaplacePredictor(5, laplace_counts()),
    "context": random_context(),
    "narrow": random_context((5, 3)),
    "place": random_context((3, 1)),
}


def natural(shape: tuple[int, int, int], step_index: int, seed: int = 0) -> Symbols:
    latent = np.random.default_rng(seed).laplace(scale=0.7, size=shape).astype(np.float32)
    return quantise(latent, step_index)


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("shape", [(5, 1, 1), (5, 1, 2), (5, 2, 1), (5, 3, 5), (5, 16, 17), (5, 63, 31), (5, 130, 140)])
@pytest.mark.parametrize("step_index", [0, 128, 255])
def test_integers_come_back_exactly(name: str, shape: tuple[int, int, int], step_index: int) -> None:
    coder = EntropyCoder(PREDICTORS[name])
    symbols = natural(shape, step_index)
    assert (coder.decode(coder.encode(symbols, step_index), shape, step_index) == symbols).all()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(PREDICTORS)),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    step_index=st.integers(0, 255),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 30, 1000, LARGEST_SYMBOL]),
)
def test_any_integers_come_back(name: str, height: int, width: int, step_index: int, seed: int, size: int) -> None:
    coder = EntropyCoder(PREDICTORS[name])
    symbols = np.random.default_rng(seed).integers(-size, size + 1, (5, height, width)).astype(np.int32)
    assert (coder.decode(coder.encode(symbols, step_index), symbols.shape, step_index) == symbols).all()


@pytest.mark.parametrize(
    ("version", "name", "golden"),
    [
        (1, "laplace", "436 e8b1fa0cf0b6434c"),
        (1, "context", "940 6524ddf2eb682652"),
        (1, "narrow", "760 6b31def4bd90fa5c"),
        (2, "laplace", "436 e8b1fa0cf0b6434c"),
        (2, "context", "992 3938f95072ba52fe"),
        (2, "narrow", "784 113cbd1cb4efe759"),
        (2, "place", "656 c5fedda9d58d0f82"),
    ],
)
def test_golden_bitstream(version: int, name: str, golden: str) -> None:
    """A change here means that files already written can no longer be read: raise the format version."""
    y, x, c = np.mgrid[0:9, 0:11, 0:5]
    symbols = (((y * 7 + x * 13 + c * 5) % 11 - 5) * (1 + (c == 4) * 20)).transpose(2, 0, 1).astype(np.int32)
    symbols[2, 4, 4] = 20_000
    coder = EntropyCoder(PREDICTORS[name], short_tables=version > 1)
    content = coder.encode(symbols, 140)
    assert (coder.decode(content, symbols.shape, 140) == symbols).all()
    assert f"{len(content)} {hashlib.sha256(content).hexdigest()[:16]}" == golden


@pytest.mark.parametrize("name", PREDICTORS)
def test_files_are_as_short_as_their_own_model_says(name: str) -> None:
    coder = EntropyCoder(PREDICTORS[name])
    symbols = natural((5, 64, 64), 128)
    ideal = coder.ideal_bits(symbols, 128) / 8
    assert ideal <= len(coder.encode(symbols, 128)) + 1 <= 1.01 * ideal + 9


def test_neighbours_help() -> None:
    """The Laplacian profile finds quiet and busy places by itself."""
    rng = np.random.default_rng(1)
    busy = rng.laplace(scale=2.0, size=(5, 32, 32))
    busy[:, :, :16] *= 0.05
    symbols = quantise(busy.astype(np.float32), 128)
    entropy = 0.0
    for channel in symbols:
        _, counts = np.unique(channel, return_counts=True)
        entropy -= float((counts * np.log2(counts / counts.sum())).sum())
    assert EntropyCoder(PREDICTORS["laplace"]).ideal_bits(symbols, 128) < 0.95 * entropy


def test_large_pictures_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    coder = EntropyCoder(PREDICTORS["context"])
    symbols = natural((5, 40, 41), 120)
    ideal = coder.ideal_bits(symbols, 120)
    monkeypatch.setattr("service.codec.entropy.CHUNK", 37)
    assert coder.ideal_bits(symbols, 120) == pytest.approx(ideal)
    assert (coder.decode(coder.encode(symbols, 120), symbols.shape, 120) == symbols).all()


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize(("height", "width"), [(16, 17), (31, 8), (1, 40), (40, 1)])
def test_flat_ground_is_sent_once(name: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    coder, symbols = EntropyCoder(PREDICTORS[name]), natural((5, height, width), 110)
    flat = np.zeros((height, width), bool)
    flat[: height // 2 + 1, : width - width // 3] = True
    symbols[:, flat] = np.array([-40, 3, 0, 200, 1])[:, None]
    content = coder.encode(symbols, 110, flat)
    assert (coder.decode(content, symbols.shape, 110, flat) == symbols).all()
    assert len(content) < len(coder.encode(symbols, 110))
    ideal = coder.ideal_bits(symbols, 110, flat) / 8
    assert ideal <= len(content) + 1 <= 1.01 * ideal + 9
    monkeypatch.setattr("service.codec.entropy.CHUNK", 13)
    assert (coder.decode(coder.encode(symbols, 110, flat), symbols.shape, 110, flat) == symbols).all()


def test_a_tiny_payload_cannot_claim_a_huge_picture() -> None:
    coder = EntropyCoder(PREDICTORS["laplace"])
    with pytest.raises(CorruptBlob, match="too short"):
        coder.decode(b"\x01", (5, 4000, 4000), 128)


@pytest.mark.parametrize("name", PREDICTORS)
def test_damaged_payloads_never_crash(name: str) -> None:
    """Symbols or a clear error, whatever the bytes; always of the claimed shape."""
    coder = EntropyCoder(PREDICTORS[name])
    rng = random.Random(3)
    whole = coder.encode(natural((5, 6, 7), 110), 110)
    errors = 0
    for _ in range(1500):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        if rng.random() < 0.2:
            content = bytearray(rng.randbytes(rng.randrange(80)))
        try:
            decoded = coder.decode(bytes(content), (5, 6, 7), rng.randrange(256))
        except CorruptBlob:
            errors += 1
        else:
            assert decoded.shape == (5, 6, 7)
            assert np.abs(decoded).max() <= LARGEST_SYMBOL
    assert errors < 1500
