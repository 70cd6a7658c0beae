"""On a GPU, what stands between two convolutions of diffusers' networks, in as few passes over memory as it takes.

torch's group normalisation leaves channels-last memory, so that each one costs two copies beside its own passes; adding a bias and
enlarging are slow in that format too.  On an H200 all that took four fifths of a decode, and ``torch.compile`` halves it, in minutes.

It must not know about latents or models: it gives modules another ``forward`` that computes the same.  Importing it needs triton, which
torch brings along where it is built for CUDA.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn
from torch.nn import functional as F

from service.engine.plain import is_plain_block, is_plain_convolution, is_plain_upsample

ROWS, COLUMNS = 64, 64
"""positions and channels that a program holds at a time"""
MOST_PARTS = 256
"""into so many parts a picture's positions are split, whose sums are taken side by side"""
FLAT = 2048
"""values that a program adds up at a time"""


@triton.jit
def _sum_parts(source, sums, positions, channels, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum and sum of squares of one part of the positions, for each of a few channels, to (items, parts, 2, channels)."""
    item, index = tl.program_id(2).to(tl.int64), tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    total, squares = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for start in range(index * part, (index + 1) * part, ROWS):
        rows = start + tl.arange(0, ROWS)
        where = (item * positions + rows)[:, None] * channels + columns[None, :]
        values = tl.load(source + where, mask=(rows < positions)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += tl.sum(values, 0)
        squares += tl.sum(values * values, 0)
    place = (item * tl.num_programs(0) + index) * 2 * channels + columns
    tl.store(sums + place, total, mask=inside)
    tl.store(sums + place + channels, squares, mask=inside)


@triton.jit
def _finish_sums(
    sums, offset, weight, bias, factors, positions, channels, parts, each, eps,
    OFFSET: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of one group of channels of one item: what its values are multiplied by and what is added, to (items, 2, channels)."""
    item, group = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns = group * each + tl.arange(0, WIDTH)
    inside = tl.arange(0, WIDTH) < each
    rows = tl.arange(0, PARTS)
    where = (item * parts + rows)[:, None] * 2 * channels + columns[None, :]
    mask = (rows < parts)[:, None] & inside[None, :]
    total = tl.sum(tl.load(sums + where, mask=mask, other=0.0), 0)
    squares = tl.sum(tl.load(sums + where + channels, mask=mask, other=0.0), 0)
    extra = tl.zeros((WIDTH,), tl.float32)
    if OFFSET:
        extra = tl.load(offset + item * channels + columns, mask=inside, other=0.0).to(tl.float32)
    squares += extra * (2 * total + positions * extra)
    total += positions * extra
    count = positions * each
    mean = tl.sum(total, 0) / count
    scale = tl.rsqrt(tl.maximum(tl.sum(squares, 0) / count - mean * mean, 0.0) + eps)
    scale = scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32) + (extra - mean) * scale
    tl.store(factors + item * 2 * channels + columns, scale, mask=inside)
    tl.store(factors + item * 2 * channels + channels + columns, shift, mask=inside)


@triton.jit
def _apply(source, factors, result, positions, channels, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Multiply and add what ``_finish_sums`` found."""
    item = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    mask = (rows < positions)[:, None] & inside[None, :]
    where = (item * positions + rows)[:, None] * channels + columns[None, :]
    scale = tl.load(factors + item * 2 * channels + columns, mask=inside, other=0.0)
    shift = tl.load(factors + item * 2 * channels + channels + columns, mask=inside, other=0.0)
    values = tl.load(source + where, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    tl.store(result + where, values.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _add(source, bias, other, result, size, channels, BIAS: tl.constexpr, OTHER: tl.constexpr, FLAT: tl.constexpr):
    """Of tensors with all channels of a position side by side."""
    where = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    mask = where < size
    values = tl.load(source + where, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        values += tl.load(bias + where % channels, mask=mask, other=0.0).to(tl.float32)
    if OTHER:
        values += tl.load(other + where, mask=mask, other=0.0).to(tl.float32)
    tl.store(result + where, values.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _enlarge(source, result, height, width, channels, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Each position to four; one program has some positions of one line of one item."""
    line = tl.program_id(2).to(tl.int64)  # of all items, one below the other
    across = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (across < width)[:, None] & (columns < channels)[None, :]
    values = tl.load(source + (line * width + across)[:, None] * channels + columns[None, :], mask=mask, other=0.0)
    first = (line * 4 * width + 2 * across)[:, None] * channels + columns[None, :]
    tl.store(result + first, values, mask=mask)
    tl.store(result + first + channels, values, mask=mask)
    tl.store(result + first + 2 * width * channels, values, mask=mask)
    tl.store(result + first + (2 * width + 1) * channels, values, mask=mask)


def normalise(norm: nn.GroupNorm, hidden: torch.Tensor, offset: torch.Tensor | None = None, silu: bool = False) -> torch.Tensor:
    """Group normalisation of (N, C, H, W), of ``hidden + offset`` where there is an offset (N, C), and SiLU of that if asked for.

    Sums and squares are added up in fp32, in a fixed order.  The offset is what a convolution's bias and a timestep add to every position:
    both sums follow from those without it.
    """
    hidden = _channels_last(hidden)
    items, channels, height, width = hidden.shape
    positions = height * width
    part = max(ROWS, triton.next_power_of_2(triton.cdiv(positions, MOST_PARTS)))
    parts, across, each = triton.cdiv(positions, part), triton.cdiv(channels, COLUMNS), channels // norm.num_groups
    sums = torch.empty((items, parts, 2, channels), dtype=torch.float32, device=hidden.device)
    factors = torch.empty((items, 2, channels), dtype=torch.float32, device=hidden.device)
    result = torch.empty_like(hidden)
    with torch.cuda.device_of(hidden):
        _sum_parts[(parts, across, items)](hidden, sums, positions, channels, part, ROWS, COLUMNS)
        _finish_sums[(norm.num_groups, items)](
            sums, hidden if offset is None else offset.contiguous(), norm.weight, norm.bias, factors, positions, channels, parts, each,
            norm.eps, offset is not None, triton.next_power_of_2(parts), triton.next_power_of_2(each),
        )  # fmt: skip
        _apply[(triton.cdiv(positions, ROWS), across, items)](hidden, factors, result, positions, channels, silu, ROWS, COLUMNS)
    return result


def add(hidden: torch.Tensor, bias: torch.Tensor | None, other: torch.Tensor | None = None) -> torch.Tensor:
    """``hidden + bias + other`` of (N, C, H, W), (C,) and (N, C, H, W), into ``hidden``, which is channels-last."""
    other = None if other is None else _channels_last(other)
    size = hidden.numel()
    with torch.cuda.device_of(hidden):
        _add[(triton.cdiv(size, FLAT),)](
            hidden, hidden if bias is None else bias, hidden if other is None else other, hidden, size, hidden.shape[1],
            bias is not None, other is not None, FLAT,
        )  # fmt: skip
    return hidden


def enlarge(hidden: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, C, 2 H, 2 W), each value four times."""
    hidden = _channels_last(hidden)
    items, channels, height, width = hidden.shape
    size = items, channels, 2 * height, 2 * width
    result = torch.empty(size, dtype=hidden.dtype, device=hidden.device, memory_format=torch.channels_last)
    grid = triton.cdiv(width, ROWS), triton.cdiv(channels, COLUMNS), items * height
    with torch.cuda.device_of(hidden):
        _enlarge[grid](hidden, result, height, width, channels, COLUMNS, ROWS)
    return result


def try_out(device: torch.device) -> None:
    """Compile a kernel and run it; raises whatever hinders that."""
    enlarge(torch.zeros(1, 1, 1, 1, device=device))


def install(network: nn.Module) -> None:
    """Make a network of diffusers compute its blocks, normalisations, biases and enlargements so."""
    module: Any
    for module in network.modules():
        if is_plain_block(module) and (module.conv_shortcut is None or module.conv_shortcut.bias is not None):
            module.forward = MethodType(_block, module)
        elif is_plain_upsample(module):
            module.forward = MethodType(_upsample, module)
        elif type(module) is nn.GroupNorm and module.affine:
            module.forward = MethodType(_group_norm, module)  # type: ignore[method-assign]
        elif is_plain_convolution(module) and module.bias is not None:
            module.forward = MethodType(_convolution, module)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _without_bias(conv: nn.Conv2d, hidden: torch.Tensor) -> torch.Tensor:
    return _channels_last(F.conv2d(hidden, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups))


def _convolution(self: nn.Conv2d, hidden: torch.Tensor) -> torch.Tensor:
    return add(_without_bias(self, hidden), self.bias)


def _group_norm(self: nn.GroupNorm, hidden: torch.Tensor) -> torch.Tensor:
    """Also of (N, C, L), as attention wants it: the plain way."""
    return normalise(self, hidden) if hidden.ndim == 4 else F.group_norm(hidden, self.num_groups, self.weight, self.bias, self.eps)


def _block(self: Any, hidden: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
    """``ResnetBlock2D.forward``: the first convolution's bias and the timestep are the offset of the second normalisation."""
    inner = _without_bias(self.conv1, normalise(self.norm1, hidden, silu=True))
    offset = self.conv1.bias.expand(len(hidden), -1)
    if self.time_emb_proj is not None:
        offset = offset + self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
    inner = _without_bias(self.conv2, normalise(self.norm2, inner, offset, silu=True))
    if self.conv_shortcut is None:
        return add(inner, self.conv2.bias, hidden)
    return add(inner, self.conv2.bias + self.conv_shortcut.bias, _without_bias(self.conv_shortcut, hidden))


def _upsample(self: Any, hidden: torch.Tensor, output_size: Any = None) -> torch.Tensor:
    """``Upsample2D.forward``."""
    larger = enlarge(hidden) if output_size is None else F.interpolate(hidden, size=output_size, mode="nearest")
    convolved: torch.Tensor = self.conv(larger)
    return convolved
