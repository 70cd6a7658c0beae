"""Networks with weights laid out beforehand give what plain ones do, rounded less often."""

import copy
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from service.engine import prepared
from service.engine.autoencoder import ResidualBlock
from service.engine.device import pick_way
from service.engine.engine import Engine
from service.engine.network import Networks
from tests.checkpoints.conftest import make_unet, make_vae

CPU, BF16 = torch.device("cpu"), torch.bfloat16


def picture(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype=dtype, memory_format=torch.channels_last)


def both(network: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A network with biases worth the name, plain and prepared."""
    for name, parameter in network.requires_grad_(False).named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    plain = network.eval().to(dtype=dtype, memory_format=torch.channels_last)
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
    plain, quick = both(nn.Linear(12, 20, bias), BF16)
    for shape in ((3, 12), (2, 77, 12)):
        hidden = torch.randn(shape).to(BF16)
        torch.testing.assert_close(quick(hidden), plain(hidden), rtol=0.02, atol=0.02)


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
    """About as near to fp32 as plain networks in the same format; no weight is held twice."""
    folder = model_of(kind)
    exact, plain, quick = Networks(folder, CPU, torch.float32), Networks(folder, CPU, BF16), Networks(folder, CPU, BF16, "prepared")
    pixels = picture(1, exact._vae.config.in_channels, 32, 32)
    latent = exact.encode(pixels)
    shown = exact.decode(latent)
    assert shown.std() > 0.01
    off = [(each.decode(latent.to(BF16)).float() - shown).square().mean().sqrt() for each in (plain, quick)]
    assert 0 < off[1] < 1.5 * off[0] < 0.1 * shown.std()
    assert quick.parameters == plain.parameters > sum(weight.numel() for weight in quick._vae.parameters())


def test_processors_that_multiply_bf16_run_networks_so(model_of: Callable[[str], Path]) -> None:
    assert [pick_way(CPU, dtype) for dtype in (BF16, torch.float32, torch.float16)] == ["prepared", "plain", "plain"]
    asked = ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "compiled": True, "backend": "eager"}, {"dtype": "float32"})
    engines = [Engine(model_of("kl"), "cpu", **each) for each in asked]  # type: ignore[arg-type]
    assert [hasattr(engine._networks._vae.encoder.conv_in, "plus") for engine in engines] == [True, False, False]


@pytest.mark.parametrize("how", [{"side_effect": AttributeError("no such operator")}, {"return_value": torch.zeros(1)}])
def test_where_that_does_not_work_networks_run_plainly(how: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_residual_block", Mock(**how))
    with capture_logs() as logs:
        assert pick_way(CPU, BF16) == "plain"
    assert [log["event"] for log in logs] == ["networks run plainly"]
