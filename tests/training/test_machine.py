"""What trains where.  Another device is imagined: torch's meta device has no numbers, and its tensors do not meet the processor's."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training import config as configuration
from training import machine
from training.__main__ import DEFAULT_CONFIG
from training.losses import Distortion
from training.networks import as_input, build, encode
from training.optimiser import Optimisers
from training.unet import Renderer
from training.unet import build as build_unet
from training.vae import draw_steps, loss_of

CONFIG = configuration.load(DEFAULT_CONFIG)


@pytest.mark.parametrize(
    ("hardware", "trained_in"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32), (torch.float16, torch.float32)]
)
def test_bf16_where_it_is_fast_and_fp32_elsewhere(hardware: torch.dtype, trained_in: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "pick_dtype", lambda device: hardware)
    assert machine.fast_dtype() is trained_in
    with machine.mixed():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is trained_in


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    device = torch.device("meta")
    monkeypatch.setattr(machine, "device", lambda: device)
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(machine, "mixed", nullcontext)  # autocast knows real devices only
    return device


class Arrivals(TorchDispatchMode):
    """Operators that bring a tensor of the processor to another device: a CUDA graph cannot hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken, given = (
            {each.device.type for each in tree_leaves(values) if isinstance(each, torch.Tensor)} for values in ((args, kwargs), result)
        )
        if "cpu" in taken and given == {"meta"}:
            self.operators.append(str(func))
        return result


def test_what_arrives_at_a_device_is_noticed() -> None:
    with Arrivals() as arrivals:
        torch.zeros(3).to("meta")
    assert arrivals.operators == ["aten._to_copy.default"]


def test_a_step_of_the_auto_encoder_stays_on_its_device(elsewhere: torch.device) -> None:
    vae, context = build(CONFIG)
    pixels, distortion = as_input(torch.zeros(4, 3, 256, 256, dtype=torch.uint8)), Distortion(CONFIG.loss)
    loss_of(vae, context, distortion, pixels, CONFIG)  # constants get there the first time
    with Arrivals() as arrivals:
        loss, _ = loss_of(vae, context, distortion, pixels, CONFIG)
        loss.backward()
    assert arrivals.operators == []
    gradients = [parameter.grad for module in (vae, context) for parameter in module.parameters()]
    assert all(gradient is not None and gradient.device == elsewhere for gradient in gradients)
    Optimisers([vae, context], [], 1e-3).step(1e-3)


def test_a_step_of_the_unet_stays_on_its_device(elsewhere: torch.device) -> None:
    vae, _ = build(CONFIG)
    network, renderer = build_unet(CONFIG), Renderer(CONFIG, 2.7)
    which = torch.tensor([3, 9], device=elsewhere)
    sent = renderer.quantise(encode(vae, as_input(torch.zeros(2, 3, 256, 256, dtype=torch.uint8)), CONFIG), which)
    assert renderer.decode(vae, renderer.restore(network, sent, which)).device == elsewhere


def test_the_loss_stays_on_its_device(elsewhere: torch.device) -> None:
    distortion = Distortion(CONFIG.loss)
    pixels = torch.zeros(4, 3, 256, 256, device=elsewhere)
    loss, parts = distortion(pixels + 0.5, pixels, draw_steps(4, CONFIG))
    assert {loss.device, *(part.device for part in parts.values())} == {elsewhere}
