"""The GPU's kernels against what torch and diffusers compute: on a GPU, or where there is none by triton's interpreter."""

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import diffusers
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch.nn import functional as F

from service.engine.device import pick_way
from tests.engine.ways import plain_and

pytest.importorskip("triton", reason="triton is built for Linux")

from service.engine import fused, prepared

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.device(DEVICE), torch.inference_mode():
        yield


def picture(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape) + 0.5).to(dtype, memory_format=torch.channels_last)


def norm(channels: int, groups: int) -> nn.GroupNorm:
    module = nn.GroupNorm(groups, channels)
    module.weight.uniform_(0.5, 2)
    module.bias.normal_()
    return module


@pytest.mark.parametrize(("channels", "groups"), [(96, 32), (64, 8), (320, 32), (6, 1)])
def test_normalises_as_torch_does(channels: int, groups: int) -> None:
    hidden, module = picture(2, channels, 9, 11), norm(channels, groups)
    result = fused.normalise(module, hidden)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, module(hidden))
    torch.testing.assert_close(fused.normalise(module, hidden.contiguous(), silu=True), F.silu(module(hidden)))


def test_an_offset_is_part_of_what_is_normalised() -> None:
    hidden, module, offset = picture(2, 64, 9, 11), norm(64, 8), 3 * torch.randn(2, 64)
    expected = F.silu(module(hidden + offset[:, :, None, None]))
    torch.testing.assert_close(fused.normalise(module, hidden, offset, silu=True), expected, rtol=1e-4, atol=1e-4)


def test_a_picture_of_many_parts_is_summed_to_its_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST_PARTS", 2)
    hidden, module = picture(1, 8, 19, 17), norm(8, 2)
    hidden[:, :, -1, -1] = 40
    torch.testing.assert_close(fused.normalise(module, hidden), module(hidden))


def test_halves_are_summed_in_full() -> None:
    hidden, module = picture(1, 64, 12, 12, dtype=torch.bfloat16), norm(64, 8)
    expected = module.bfloat16().float()(hidden.float())
    result = fused.normalise(module.bfloat16(), hidden)
    torch.testing.assert_close(result.float(), expected, rtol=2**-7, atol=2**-7)  # the interpreter cuts bits off


def test_adds_and_enlarges_as_torch_does() -> None:
    hidden, bias, other = picture(2, 80, 5, 7), torch.randn(80), torch.randn(2, 80, 5, 7)
    torch.testing.assert_close(fused.enlarge(hidden), F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
    for biased, added in ((bias, None), (None, other), (bias, other)):
        expected = hidden + (0 if biased is None else biased.view(1, -1, 1, 1)) + (0 if added is None else added)
        torch.testing.assert_close(fused.add(hidden.clone(memory_format=torch.preserve_format), biased, added), expected)


def networks() -> dict[str, Callable[[], torch.Tensor]]:
    """Small ones of every kind of block that Stable Diffusion has."""
    widths = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    vae = diffusers.AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **widths)
    unet = diffusers.UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=8, **widths,
    )  # fmt: skip
    for network in (vae, unet):
        network.eval().to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    pixels, latent, prompt, timesteps = picture(2, 3, 32, 32), picture(2, 4, 16, 16), torch.randn(2, 5, 16), torch.tensor([3, 700])
    return {
        "encode": lambda: vae.encode(pixels).latent_dist.mode(),
        "decode": lambda: vae.decode(latent).sample,
        "predict": lambda: unet(latent, timesteps, encoder_hidden_states=prompt).sample,
        "install": lambda: (fused.install(vae), fused.install(unet)),  # type: ignore[dict-item]
    }


def test_networks_compute_the_same_in_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = networks()
    install = calls.pop("install")
    expected = {name: call() for name, call in calls.items()}
    install()
    left = Mock(side_effect=F.group_norm)
    monkeypatch.setattr(F, "group_norm", left)
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected[name], rtol=1e-4, atol=1e-4)
    # but for attention, which has its places in a row
    assert {call.args[0].ndim for call in left.call_args_list} == {3}


@pytest.mark.parametrize("kind", ["residual", "kl", "tiny"])
def test_a_model_folder_is_loaded_with_them(kind: str, model_of: Callable[[str], Path]) -> None:
    plain_and("fused", model_of(kind), DEVICE)


def test_they_are_for_gpus_and_formats_of_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in (fused, prepared):
        monkeypatch.setattr(way, "try_out", Mock())
    gpu, half = torch.device("cuda"), torch.bfloat16
    assert [pick_way(*pair) for pair in ((gpu, half), (gpu, torch.float32), (torch.device("cpu"), half))] == ["fused", "plain", "prepared"]


def test_where_they_cannot_be_compiled_networks_run_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    fused.try_out(DEVICE)
    monkeypatch.setattr(fused, "enlarge", Mock(side_effect=RuntimeError("Failed to find C compiler.")))
    with capture_logs() as logs:
        assert pick_way(torch.device("cuda"), torch.bfloat16) == "plain"
    assert [log["event"] for log in logs] == ["networks run plainly"]
