"""What those have in common that give modules another ``forward``: which do just what their names say, how their weights are taken, and
whether the result is the same."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn


def is_plain_block(module: nn.Module) -> bool:
    """Whether it is a residual block of two normalisations, SiLUs and convolutions, to whose middle a timestep may be added."""
    return (
        isinstance(module, ResnetBlock2D) and module.upsample is None and module.downsample is None
        and module.time_embedding_norm in ("default", "group") and module.output_scale_factor == 1
        and isinstance(module.nonlinearity, nn.SiLU)
    )  # fmt: skip


def is_plain_upsample(module: nn.Module) -> bool:
    """Whether it enlarges by repeating, then convolves, and nothing else."""
    return (
        isinstance(module, Upsample2D) and module.use_conv and module.name == "conv" and module.interpolate and module.norm is None
        and not module.use_conv_transpose
    )  # fmt: skip


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution of pictures, with zeros around them."""
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def taken(module: Any) -> torch.Tensor:
    """A module's weight, which it has no longer: it would be held twice."""
    weight: torch.Tensor = module.weight.detach()
    module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return weight


def check_alike(found: torch.Tensor, expected: torch.Tensor, within: float) -> None:
    """Raise AssertionError where two tensors of one shape are further apart than ``within``, and that much of the expected value.

    ``torch.testing`` would say more, and imports torch.distributed and sympy for it: 1.7 s of a start (measured).
    """
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=within, rtol=within):
        raise AssertionError("this processor computes something else in that way")
