"""The context model as floats and as the integers of docs/FORMAT.md, both ways."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import torch

from service.calibration.context import ContextModel, bias_of
from service.codec.context import HIDDEN_BITS, LATENT_BITS, WEIGHT_BITS
from service.codec.lattice import PHASES
from service.codec.profile import Tensors
from service.codec.steps import STEPS_PER_OCTAVE
from service.codec.tables import SCALES_PER_OCTAVE

LOG_STEP = math.log(2) / STEPS_PER_OCTAVE
"""(step index above 128) * this = log(step), the float model's input"""
EIGHTHS = SCALES_PER_OCTAVE / math.log(2)
"""log-scale to the scale index of the tables"""
FIRST = 1 << (LATENT_BITS + WEIGHT_BITS)
LATER = 1 << (HIDDEN_BITS + WEIGHT_BITS)
WEIGHT = 1 << WEIGHT_BITS


def _out_unit(group: int) -> torch.Tensor:
    return torch.cat([torch.ones(group), torch.full((group,), EIGHTHS)])


def _fixed(values: torch.Tensor, scale: float, dtype: type[np.signedinteger]) -> npt.NDArray[np.generic]:
    limit = np.iinfo(dtype).max
    rounded = np.rint(values.detach().double().numpy() * scale)
    return np.ascontiguousarray(np.clip(rounded, -limit, limit).astype(dtype))


def integer_passes(context: ContextModel) -> Tensors:
    """Weights of the float model, of normalised latents, rounded."""
    tensors: Tensors = {"group_sizes": np.array(context.group_sizes, np.int32)}
    for index, item in enumerate(context.in_order):
        unit = _out_unit(item.out.weight.shape[0] // 2)
        tensors |= {
            f"{index}.window": _fixed(item.window.weight.flatten(1).T, WEIGHT, np.int16),
            f"{index}.window_bias": _fixed(bias_of(item.window), FIRST, np.int32),
            f"{index}.window_step": _fixed(item.step.weight[:, 0] * LOG_STEP, FIRST, np.int32),
            f"{index}.middle": _fixed(item.middle.weight[:, :, 0, 0].T, WEIGHT, np.int16),
            f"{index}.middle_bias": _fixed(bias_of(item.middle), LATER, np.int32),
            f"{index}.out": _fixed((item.out.weight[:, :, 0, 0] * unit[:, None]).T, WEIGHT, np.int16),
            f"{index}.out_bias": _fixed(bias_of(item.out) * unit, LATER, np.int32),
        }
    return tensors


@torch.no_grad()
def float_context(tensors: Tensors) -> ContextModel:
    """The float model, of normalised latents, whose rounding ``tensors`` are."""
    sizes = [int(size) for size in tensors["group_sizes"].tolist()]
    windows, hidden = [], []
    for group, known in enumerate(itertools.accumulate(sizes)):
        rows, width = tensors[f"{group * len(PHASES)}.window"].shape
        windows.append(math.isqrt(rows // known))
        hidden.append(width)
    context = ContextModel(sizes, hidden, windows)

    def real(name: str, scale: float) -> torch.Tensor:
        return torch.from_numpy(tensors[name].astype(np.float32) / scale)

    for index, item in enumerate(context.in_order):
        unit = _out_unit(sizes[index // len(PHASES)])
        item.window.weight.copy_(real(f"{index}.window", WEIGHT).T.reshape(item.window.weight.shape))
        bias_of(item.window).copy_(real(f"{index}.window_bias", FIRST))
        item.step.weight.copy_(real(f"{index}.window_step", FIRST * LOG_STEP)[:, None])
        item.middle.weight.copy_(real(f"{index}.middle", WEIGHT).T[:, :, None, None])
        bias_of(item.middle).copy_(real(f"{index}.middle_bias", LATER))
        item.out.weight.copy_((real(f"{index}.out", WEIGHT).T / unit[:, None])[:, :, None, None])
        bias_of(item.out).copy_(real(f"{index}.out_bias", LATER) / unit)
    return context
