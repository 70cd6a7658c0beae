"""On a processor that multiplies bf16: weights laid out once, and convolutions that add or rectify in the pass that writes their result.

torch lays a weight out for oneDNN's kernels at every call, and each addition or ReLU after a convolution reads and writes the picture
again.  oneDNN can do better, and torch has operators for it: those that ``torch.compile`` makes programs of, which nobody else is told
about, hence ``try_out``.  In fp32 multiplying takes so long that nothing is gained (measured).

It must not know about latents or files: it gives modules another ``forward`` that computes the same, and takes their plain weights away.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from service.engine.autoencoder import ResidualBlock
from service.engine.plain import check_alike, is_plain_block, is_plain_convolution, taken


def install(network: nn.Module) -> None:
    """Make a network compute so.  It cannot be saved, trained or moved any more."""
    for module in network.modules():
        if is_plain_convolution(module):
            _prepare_convolution(module)
        elif type(module) is nn.Linear:
            _prepare_linear(module)
        elif isinstance(module, ResidualBlock):
            module.forward = MethodType(_residual_block, module)  # type: ignore[method-assign]
        elif is_plain_block(module):
            module.forward = MethodType(_resnet_block, module)


def try_out(dtype: torch.dtype) -> None:
    """Run a block and compare; raises whatever hinders that, AssertionError where the result is another."""
    plain: Any = ResidualBlock(16)
    plain.requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
    prepared = copy.deepcopy(plain)
    install(prepared)
    hidden = torch.linspace(-1, 1, 16 * 64, dtype=dtype).view(1, 16, 8, 8).to(memory_format=torch.channels_last)
    check_alike(prepared(hidden), plain(hidden), within=0.05)


def _prepare_convolution(conv: Any) -> None:
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    weight = torch._C._nn.mkldnn_reorder_conv2d_weight(taken(conv).to_mkldnn(), *geometry)
    operator, bias = torch.ops.mkldnn._convolution_pointwise, conv.bias

    def forward(hidden: torch.Tensor, then: str = "none") -> torch.Tensor:
        """``then``: ``none`` or ``relu``"""
        result: torch.Tensor = operator(hidden, weight, bias, *geometry, then, [], "")
        return result

    def plus(hidden: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The convolution of ``hidden``, and ``other`` added to it before it is rounded."""
        result: torch.Tensor = operator.binary(hidden, other, weight, bias, *geometry, "add", 1.0, None, [], None)
        return result

    conv.forward, conv.plus = forward, plus


def _prepare_linear(linear: Any) -> None:
    weight, bias = torch.ops.mkldnn._reorder_linear_weight(taken(linear)), linear.bias

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
        return result

    linear.forward = forward


def _residual_block(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """``ResidualBlock.forward``."""
    result: torch.Tensor = self.conv2.plus(self.conv1(hidden, "relu"), hidden)
    return result


def _resnet_block(self: Any, hidden: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
    """``ResnetBlock2D.forward``."""
    inner = self.conv1(F.silu(self.norm1(hidden), inplace=True))
    if self.time_emb_proj is not None:
        inner += self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))[:, :, None, None]
    inner = F.silu(self.norm2(inner), inplace=True)
    result: torch.Tensor = self.conv2.plus(inner, hidden if self.conv_shortcut is None else self.conv_shortcut(hidden))
    return result
