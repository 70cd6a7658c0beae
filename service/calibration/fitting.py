"""Trains a small context model on a model's latents and makes an entropy profile of it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from service.calibration.context import ContextModel, bias_of
from service.calibration.integers import integer_passes
from service.calibration.tables import Latents, fit_counts, fit_rate_guess
from service.codec.entropy import EntropyCoder
from service.codec.lattice import PHASES
from service.codec.profile import Tensors, context_predictor
from service.codec.steps import quantise, step_size
from service.codec.tables import logistic_counts

BATCH = 16
LEARNING_RATE = 3e-3
DECAY = 0.6
"""share of the time, at its end, over which the learning rate falls to nothing"""
EMA = 0.98
SEED = 1
FEW_CHANNELS = 8
"""up to so many channels are coded one after another"""


@dataclass(frozen=True)
class Fitted:
    """An entropy profile, and the manifest's guess of a size."""

    tensors: Tensors
    coder: EntropyCoder
    rate_guess: dict[str, float]


def shape_for(channels: int, sizes: list[int] | None = None) -> tuple[list[int], list[int], list[int]]:
    """Group sizes, hidden widths and windows.

    Unless sizes are given, one channel a group where there are few, else groups as large as all before together.
    """
    if sizes is None:
        sizes = [1] * channels if channels <= FEW_CHANNELS else [max(1, channels // 32)]
        while sum(sizes) < channels:
            sizes.append(min(sum(sizes), channels - sum(sizes)))
    known = itertools.accumulate(sizes)
    windows = [5 if count <= 32 else 3 for count in known]
    return sizes, [48 if channels <= FEW_CHANNELS else 64] * len(sizes), windows


def fit(
    latents: Latents,
    indices: list[int],
    pixels: int,
    minutes: float,
    told: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
    sizes: list[int] | None = None,
    coarsest: tuple[int, ...] = (),
) -> Fitted:
    """Train for so many minutes, on the processor, in fp32.

    Args:
        latents: (N, C, h, w) normalised, h and w even.
        indices: step indices the profile shall serve.
        pixels: of the picture each latent stands for.
        minutes: of the clock.
        told: is given the share that is done, 0 to 1.
        clock: in seconds.
        sizes: of the groups of channels; None for those of ``shape_for``.
        coarsest: the last step index that each group is sent at; empty where all are sent at any.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    everything, steps = torch.from_numpy(latents), torch.tensor([step_size(index) for index in indices])
    context = ContextModel(*shape_for(latents.shape[1], sizes))
    _start_at(context, latents)
    averaged = AveragedModel(context, multi_avg_fn=get_ema_multi_avg_fn(EMA))  # type: ignore[no-untyped-call]
    optimiser = torch.optim.Adam(context.parameters(), LEARNING_RATE)
    started = clock()
    while (done := (clock() - started) / (60 * minutes)) < 1:
        told(done)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (1 - done) / DECAY)
        chosen = torch.randint(len(everything), (BATCH,), generator=generator)
        step = steps[torch.randint(len(steps), (BATCH,), generator=generator)]
        width = step.view(-1, 1, 1, 1)
        known = torch.round(everything[chosen] / width) * width
        bits = context(known, known, step)
        loss = (bits / (bits.detach() + 1)).mean()  # in proportion: a coarse picture's bits count as much as a fine one's
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(context.parameters(), 1.0)
        optimiser.step()
        averaged.update_parameters(context)
    told(1.0)
    finished = averaged.module
    assert isinstance(finished, ContextModel)
    tensors = integer_passes(finished) | {"counts": logistic_counts()}
    channels = latents.shape[1]
    tensors["counts"] = fit_counts(context_predictor(tensors, channels, coarsest), latents, indices, np.random.default_rng(SEED))
    coder = EntropyCoder(context_predictor(tensors, channels, coarsest))
    return Fitted(tensors, coder, fit_rate_guess(coder, latents[:64], pixels, indices))


@torch.no_grad()
def _start_at(context: ContextModel, latents: Latents) -> None:
    """Begin as an i.i.d. model: each channel's own mean, and the scale of a logistic of its deviation."""
    means, deviations = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) + 1e-3
    for index, item in enumerate(context.in_order):
        size = context.group_sizes[index // len(PHASES)]
        start = sum(context.group_sizes[: index // len(PHASES)])
        own = slice(start, start + size)
        scale = np.log(deviations[own] * math.sqrt(3) / math.pi)
        bias_of(item.out).copy_(torch.from_numpy(np.concatenate([means[own], scale])))


def mean_bytes(coder: EntropyCoder, latents: Latents, index: int) -> float:
    """Mean size of the payload of latents (N, C, h, w) at a step index."""
    return float(np.mean([len(coder.encode(quantise(latent, index), index)) for latent in latents]))
