"""The float twin of ``service.codec.context``: the same passes over the same neighbours, differentiable.

Latent channels are coded in groups; within a group the four phases of a 2x2 lattice follow one another.  Everything in a pass is
predicted from what is already known, in a window of 5x5, 3x3 or the place itself: all earlier groups, and the earlier phases of its own.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from service.codec.lattice import PHASES

EVERY = slice(None)

SMALLEST_SCALE = 0.05
"""of the logistic, in quantiser steps"""


def bits(value: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Code length in bits of a cell of width ``step`` around ``value`` under a logistic; all broadcastable, same shape out."""
    scale = torch.exp(log_scale.clamp(-8, 6)) + SMALLEST_SCALE * step
    distance = (value - mean).abs()
    upper, lower = (distance + step / 2) / scale, (distance - step / 2) / scale
    # P = sigmoid(upper) - sigmoid(lower) = sigmoid(-lower) * sigmoid(upper) * (1 - exp(lower - upper)), stable in the tails
    log_probability = F.logsigmoid(-lower) + F.logsigmoid(upper) + torch.log(-torch.expm1(lower - upper))
    return log_probability / -math.log(2)


def bias_of(layer: nn.Conv2d) -> torch.Tensor:
    """The bias of a layer that has one."""
    assert layer.bias is not None
    return layer.bias


class ContextPass(nn.Module):
    """Mean and log-scale of one group at one phase, from the known latents and the step."""

    def __init__(self, known: int, group: int, hidden: int, window: int) -> None:
        super().__init__()
        self.radius = window // 2
        self.window = nn.Conv2d(known, hidden, window, stride=2)
        self.step = nn.Linear(1, hidden, bias=False)
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.out = nn.Conv2d(hidden, 2 * group, 1)
        nn.init.normal_(self.step.weight, std=0.1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, padded: torch.Tensor, log_step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.window(padded) + self.step(log_step[:, None])[:, :, None, None])
        mean, log_scale = self.out(torch.relu(self.middle(hidden))).float().chunk(2, 1)
        return mean, log_scale


class ContextModel(nn.Module):
    """Rate of a latent (N, C, h, w), h and w even, quantised with one step per item."""

    def __init__(self, group_sizes: list[int], hidden: list[int], windows: list[int]) -> None:
        super().__init__()
        self.group_sizes = group_sizes
        shapes = zip(itertools.accumulate(group_sizes), group_sizes, hidden, windows, strict=True)
        self.passes = nn.ModuleList(ContextPass(*shape) for shape in shapes for _ in PHASES)

    @property
    def in_order(self) -> list[ContextPass]:
        """The passes, as what they are."""
        return cast(list[ContextPass], list(self.passes))

    def predictions(
        self, known: torch.Tensor, log_step: torch.Tensor, groups: slice = EVERY
    ) -> list[tuple[slice, int, int, torch.Tensor, torch.Tensor]]:
        """For each pass of ``groups``: channels, phase row, phase column, mean and log-scale at its positions (N, group, h/2, w/2)."""
        found, passes = [], self.in_order
        for group in range(len(self.group_sizes))[groups]:
            start, size, index = sum(self.group_sizes[:group]), self.group_sizes[group], group * len(PHASES)
            channels = slice(start, start + size)
            mask = torch.zeros(known.shape[2:], dtype=known.dtype, device=known.device)
            for row, column in PHASES:
                visible = torch.cat([known[:, :start], known[:, channels] * mask], 1)
                item = passes[index]
                before, after = (item.radius - column, item.radius - row), (item.radius - 1 + column, item.radius - 1 + row)
                padded = F.pad(visible, (before[0], after[0], before[1], after[1]))
                mean, log_scale = item(padded, log_step)
                found.append((channels, row, column, mean, log_scale))
                mask = mask.clone()
                mask[row::2, column::2] = 1
                index += 1
        return found

    def forward(self, known: torch.Tensor, coded: torch.Tensor, step: torch.Tensor, groups: slice = EVERY) -> torch.Tensor:
        """Bits of each item, (N,), of some groups or of all.

        Args:
            known: (N, C, h, w) dequantised latents, what a decoder would see.
            coded: (N, C, h, w) the values whose cells are coded (the same, or with uniform noise during training).
            step: (N,) quantiser step.
        """
        total = torch.zeros_like(step)
        width = step[:, None, None, None]
        for channels, row, column, mean, log_scale in self.predictions(known, step.log(), groups):
            value = coded[:, channels, row::2, column::2].float()
            total = total + bits(value, mean, log_scale, width).sum((1, 2, 3))
        return total


@torch.no_grad()
def rescale(context: ContextModel, scale: float) -> None:
    """Make a model of latents into one of latents divided by ``scale``, exactly (but for the clamps)."""
    for item in context.in_order:
        item.window.weight.mul_(scale)
        # log(step) was that of the raw latent: log(step / scale) + log(scale)
        bias_of(item.window).add_(item.step.weight[:, 0] * math.log(scale))
        means = item.out.weight.shape[0] // 2
        item.out.weight[:means].div_(scale)
        bias_of(item.out)[:means].div_(scale)
        bias_of(item.out)[means:].sub_(math.log(scale))


@torch.no_grad()
def keep_most_used(narrow: ContextModel, wide: ContextModel) -> None:
    """Give ``narrow`` those hidden units of ``wide``, pass by pass, whose weights in and out are the largest.

    Raises ValueError where ``wide`` is the narrower one.
    """
    for ours, theirs in zip(narrow.in_order, wide.in_order, strict=True):
        width = ours.middle.in_channels
        if width > theirs.middle.in_channels:
            raise ValueError(f"{theirs.middle.in_channels} hidden units cannot become {width}")
        middle = theirs.middle.weight[:, :, 0, 0]
        first = theirs.window.weight.flatten(1).norm(dim=1) * middle.norm(dim=0)
        second = middle.norm(dim=1) * theirs.out.weight[:, :, 0, 0].norm(dim=0)
        kept, kept_second = (use.topk(width).indices.sort().values for use in (first, second))
        ours.window.weight.copy_(theirs.window.weight[kept])
        bias_of(ours.window).copy_(bias_of(theirs.window)[kept])
        ours.step.weight.copy_(theirs.step.weight[kept])
        ours.middle.weight.copy_(theirs.middle.weight[kept_second][:, kept])
        bias_of(ours.middle).copy_(bias_of(theirs.middle)[kept_second])
        ours.out.weight.copy_(theirs.out.weight[:, kept_second])
        bias_of(ours.out).copy_(bias_of(theirs.out))
