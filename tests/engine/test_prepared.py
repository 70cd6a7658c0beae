"""Networks with weights laid out beforehand give what plain ones do: in fp32, which every processor computes in."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from service.engine import engine, prepared
from service.engine.autoencoder import ResidualBlock
from service.engine.device import pick_way
from tests.checkpoints.conftest import make_unet, make_vae
from tests.engine.ways import plain_and

CPU, BF16 = torch.device("cpu"), torch.bfloat16


def picture(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def both(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A network with biases worth the name, plain and prepared."""
    for name, parameter in network.requires_grad_(False).named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    plain: Any = network.eval()
    plain.to(memory_format=torch.channels_last)
    quick = copy.deepcopy(plain)
    prepared.install(quick)
    return plain, quick


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 5, 7)),
        (nn.Conv2d(6, 10, 3, stride=2, bias=False), (1, 6, 9, 8)),
        (nn.Conv2d(8, 8, 5, padding=2, dilation=2, groups=4), (1, 8, 12, 11)),
        (nn.Conv2d(6, 10, 1), (1, 6, 1, 1)),
        (ResidualBlock(12), (2, 12, 6, 5)),
    ],
)
def test_the_same_numbers(network: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain, quick = both(copy.deepcopy(network))
    hidden = picture(*shape)
    expected, result = plain(hidden), quick(hidden)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(bias: bool) -> None:
    plain, quick = both(nn.Linear(12, 20, bias))
    for shape in ((3, 12), (2, 77, 12)):
        hidden = torch.randn(shape)
        torch.testing.assert_close(quick(hidden), plain(hidden), rtol=1e-5, atol=1e-5)


def test_what_is_given_in_is_left_as_it_is() -> None:
    _, quick = both(ResidualBlock(8))
    hidden = picture(1, 8, 4, 4)
    before = hidden.clone()
    quick(hidden)
    assert torch.equal(hidden, before)


def test_stable_diffusion() -> None:
    torch.manual_seed(0)
    (vae, quick_vae), (unet, quick_unet) = both(make_vae()), both(make_unet(width=16))
    pixels, latent, prompt, timesteps = picture(2, 3, 32, 32), picture(2, 4, 16, 16), torch.randn(2, 5, 16), torch.tensor([3, 700])
    torch.testing.assert_close(quick_vae.encode(pixels).latent_dist.mode(), vae.encode(pixels).latent_dist.mode(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quick_vae.decode(latent).sample, vae.decode(latent).sample, rtol=1e-4, atol=1e-4)
    given = {"encoder_hidden_states": prompt}
    torch.testing.assert_close(quick_unet(latent, timesteps, **given).sample, unet(latent, timesteps, **given).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["residual", "kl", "tiny"])
def test_a_model_folder_is_loaded_so(kind: str, model_of: Callable[[str], Path]) -> None:
    """And no weight is held twice."""
    plain, quick = plain_and("prepared", model_of(kind), CPU)
    assert quick.parameters == plain.parameters > sum(weight.numel() for weight in quick._vae.parameters())


def test_processors_that_multiply_bf16_run_networks_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "try_out", Mock())
    assert [pick_way(CPU, dtype) for dtype in (BF16, torch.float32, torch.float16)] == ["prepared", "winograd", "plain"]


def test_compiled_networks_do_not(model_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pick_way", lambda *_: "prepared")
    engines = [engine.Engine(model_of("kl"), "cpu", "float32", compiled, "eager") for compiled in (None, True)]
    assert [hasattr(each._networks._vae.encoder.conv_in, "plus") for each in engines] == [True, False]
    for each in engines:
        each.check()


@pytest.mark.parametrize("how", [{"side_effect": AttributeError("no such operator")}, {"return_value": torch.zeros(1)}])
def test_where_that_does_not_work_networks_run_plainly(how: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_residual_block", Mock(**how))
    with capture_logs() as logs:
        assert pick_way(CPU, BF16) == "plain"
    assert [log["event"] for log in logs] == ["networks run plainly"]
