"""Convolving before enlarging gives what enlarging and then convolving does."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers.models.upsampling import Upsample2D

from service.bench import full_size
from service.engine import enlarging
from service.engine.network import Networks
from tests.checkpoints.conftest import make_unet, make_vae


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers(height: int, width: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = Upsample2D(5, use_conv=True, out_channels=3, bias=bias).requires_grad_(False)
    quick = copy.deepcopy(plain)
    enlarging.install(quick)
    hidden = torch.randn(2, 5, height, width).to(memory_format=torch.channels_last)
    assert quick.forward.__name__ == "forward" and quick.forward.__func__ is not Upsample2D.forward
    assert quick(hidden).shape == (2, 3, 2 * height, 2 * width)
    assert torch.allclose(quick(hidden), plain(hidden), atol=1e-6)
    odd = (2 * height + 1, 2 * width + 1)
    assert torch.allclose(quick(hidden, odd), plain(hidden, odd), atol=1e-6)


def test_what_does_more_than_that_is_left_alone() -> None:
    for module in (Upsample2D(4), Upsample2D(4, use_conv=True, kernel_size=1, padding=0), Upsample2D(4, use_conv_transpose=True)):
        enlarging.install(module)
        assert module.forward.__func__ is Upsample2D.forward


def test_decoders_on_a_processor_and_not_their_unets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "vae", make_vae)
    monkeypatch.setattr(full_size, "unet", lambda: make_unet(width=full_size.WIDTH))
    networks = Networks(full_size.build(tmp_path / "model"), torch.device("cpu"), torch.float32)
    changed = {
        name: [module.forward.__func__ is not Upsample2D.forward for module in network.modules() if isinstance(module, Upsample2D)]
        for name, network in {"decoder": networks._decoder, "unet": networks._unet}.items()
    }
    assert changed == {"decoder": [True] * 3, "unet": [False]}
    latent = torch.randn(1, 4, 4, 6).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(networks._decoder)
    for module in plain.modules():
        module.__dict__.pop("forward", None)
    assert torch.allclose(networks.decode(latent), plain.decode(latent).sample, atol=1e-4)
