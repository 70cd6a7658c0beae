"""The bundled auto-encoder by ncnn gives what torch gives."""

import copy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from service.engine import winograd
from service.engine.autoencoder import ResidualAutoencoder, ResidualBlock
from service.engine.device import pick_way
from service.engine.engine import Engine
from service.errors import OutOfMemory
from service.settings import BUNDLED_MODEL
from service.telemetry import metrics
from tests.conftest import Plane
from tests.engine.ways import plain_and

CPU = torch.device("cpu")


@pytest.fixture
def layers() -> nn.Sequential:
    """One of each kind, with biases worth the name, from 5 channels to 7."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(5, 24, 3, padding=1), ResidualBlock(24), nn.Conv2d(24, 40, 3, stride=2, padding=1), ResidualBlock(40),
        nn.Conv2d(40, 28, 1), nn.PixelShuffle(2),
    )  # fmt: skip
    for name, parameter in made.requires_grad_(False).named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    return made


@pytest.fixture
def quick(layers: nn.Sequential) -> winograd._Layers:
    return winograd._Layers(copy.deepcopy(layers))


@pytest.mark.parametrize("shape", [(1, 5, 32, 32), (2, 5, 13, 21), (3, 5, 6, 2), (1, 5, 1, 1)])
def test_the_same_numbers(layers: nn.Sequential, quick: winograd._Layers, shape: tuple[int, ...]) -> None:
    hidden = torch.randn(shape).to(memory_format=torch.channels_last)
    before = hidden.clone()
    torch.testing.assert_close(quick(hidden), layers(hidden), rtol=1e-4, atol=1e-4)
    assert torch.equal(hidden, before)


def test_an_item_does_not_know_its_batch(quick: winograd._Layers) -> None:
    hidden = torch.randn(3, 5, 16, 24)
    assert torch.equal(quick(hidden)[1:2], quick(hidden[1:2]))


def test_what_is_not_finite_is_seen(quick: winograd._Layers) -> None:
    hidden = torch.randn(2, 5, 16, 16)
    hidden[1, 3, 7, 7] = torch.nan
    assert quick(hidden).isfinite().flatten(1).all(1).tolist() == [True, False]


def test_a_picture_whose_result_is_not_finite_is_computed_again_by_torch(photo: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(BUNDLED_MODEL, "cpu", "float32")
    pixels = np.stack([photo[:64, :64], photo[-64:, -64:]])
    expected, before = engine.encode(pixels), metrics.NONFINITE._value.get()
    run = winograd._Layers._run
    monkeypatch.setattr(winograd._Layers, "_run", lambda self, item: run(self, np.where(item == item.max(), np.nan, item)))
    np.testing.assert_allclose(engine.encode(pixels), expected, rtol=1e-2, atol=1e-3)
    assert metrics.NONFINITE._value.get() == before + 2


def test_others_run_meanwhile(quick: winograd._Layers) -> None:
    """The interpreter is not kept: an event loop goes on."""
    hidden, seen, ended = torch.randn(1, 5, 768, 768), 0, threading.Event()

    def count() -> None:
        nonlocal seen
        while not ended.is_set():
            time.sleep(0.0001)
            seen += 1

    other = threading.Thread(target=count)
    other.start()
    item = hidden[0].numpy()
    before = seen
    quick._run(item)
    after = seen
    ended.set()
    other.join()
    assert after - before > 20


def test_the_bundled_model(photo: Plane) -> None:
    """And no weight is held twice; pictures of sizes that fill no tile, too."""
    plain, quick = plain_and("winograd", BUNDLED_MODEL, CPU)
    assert quick.alone and not plain.alone
    assert quick.parameters == plain.parameters > sum(weight.numel() for weight in quick._vae.parameters())
    for height, width in ((16, 16), (80, 112)):
        pixels = torch.from_numpy(photo[:height, :width].copy()).permute(2, 0, 1)[None] / 127.5 - 1
        patches = torch.nn.functional.pixel_unshuffle(pixels, 4)
        latent = plain.encode(patches)
        torch.testing.assert_close(quick.encode(patches), latent, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(quick.decode(latent), plain.decode(latent), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_other_autoencoders_are_left_as_they_are(kind: str, model_of: Callable[[str], Path]) -> None:
    _, quick = plain_and("winograd", model_of(kind), CPU)
    assert not quick.alone
    assert quick.parameters == sum(parameter.numel() for network in (quick._vae, quick._unet) for parameter in network.parameters())


def test_processors_in_fp32_run_networks_so() -> None:
    assert pick_way(CPU, torch.float32) == "winograd"


def test_where_there_is_no_ncnn_networks_run_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with capture_logs() as logs:
        assert pick_way(CPU, torch.float32) == "plain"
    assert logs == []


def test_a_library_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd.ncnn, "Net", Mock(side_effect=ImportError("libgomp.so.1: cannot open shared object file")))
    with capture_logs() as logs:
        assert pick_way(CPU, torch.float32) == "plain"
    assert [log["event"] for log in logs] == ["networks run plainly"]


def test_another_result_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd._Graph, "_convolution", lambda _self, _conv, source, *_: source)
    with capture_logs() as logs:
        assert pick_way(CPU, torch.float32) == "plain"
    assert [log["event"] for log in logs] == ["networks run plainly"]


def test_too_little_memory_is_told(model_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model_of("residual"), "cpu", "float32")
    assert isinstance(engine._networks._vae, ResidualAutoencoder)
    extractor = Mock()
    extractor.extract.return_value = (-100, None)  # what ncnn says where it gets no memory
    monkeypatch.setattr(engine._networks._vae.encoder.forward, "_net", Mock(create_extractor=lambda: extractor))
    with pytest.raises(OutOfMemory):
        engine.encode(np.zeros((1, 64, 64, 3), np.uint8))
