"""On a processor, the convolution after an enlargement, computed before it: less than half of the multiplications, the same picture.

Nearest-neighbour enlarging by two repeats every value in a square of four, so each 3x3 window of the larger picture sees 2x2 values of the
smaller one, and which weights meet on the same value depends only on whether row and column are even.  Four 2x2 kernels of summed weights
take 16 multiplications where 36 were needed (the sub-pixel convolution of Shi et al. 2016, read backwards).

It must not know about latents or models: it gives modules another ``forward``.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from service.engine.plain import is_plain_upsample

PARITIES = 4
"""even or odd row, even or odd column"""


def install(network: nn.Module) -> None:
    """Make a network of diffusers convolve so.

    Meant for decoders, whose pictures are large beside their kernels: at 8x8 to 32x32 places of a U-Net it was slower (measured).
    """
    module: Any
    for module in network.modules():
        if is_plain_upsample(module) and module.conv.kernel_size == (3, 3) and module.conv.padding == (1, 1):
            summed = _summed(module.conv.weight.detach().float()).to(module.conv.weight.dtype)
            bias = None if module.conv.bias is None else module.conv.bias.detach().repeat(PARITIES)
            module.forward = MethodType(_upsample(summed.contiguous(memory_format=torch.channels_last), bias), module)


def _summed(weight: torch.Tensor) -> torch.Tensor:
    """Kernels (O, I, 3, 3) to those of the four parities, (4 * O, I, 2, 2): what falls on the same value of the smaller picture."""
    by_row = [torch.stack(pair, 2) for pair in _pairs(weight.unbind(2))]
    return torch.cat([torch.stack(pair, 3) for rows in by_row for pair in _pairs(rows.unbind(3))])


def _pairs(three: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Taps of an even place (the value before it, then its own) and of an odd one (its own, then the value after it)."""
    first, second, third = three
    return [(first, second + third), (first + second, third)]


def _upsample(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """``Upsample2D.forward`` with these kernels."""

    def forward(self: Any, hidden: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        if output_size is not None:  # of a U-Net whose sides are no multiple of two
            plainly: torch.Tensor = Upsample2D.forward(self, hidden, output_size)
            return plainly
        n, _, height, width = hidden.shape
        parts = F.conv2d(hidden, weight, bias, padding=1).unflatten(1, (PARITIES, -1))
        size = n, parts.shape[2], 2 * height, 2 * width
        result = torch.empty(size, dtype=hidden.dtype, device=hidden.device, memory_format=torch.channels_last)
        for parity in range(PARITIES):
            row, column = divmod(parity, 2)
            result[:, :, row::2, column::2] = parts[:, parity, :, row : row + height, column : column + width]
        return result

    return forward
