"""Quantiser step to diffusion timestep.

Uniform noise of step D has standard deviation D / sqrt(12).  A diffusion model knows z_t = sqrt(a_t) z + sqrt(1 - a_t) eps (Ho et al.
2020, eq. 4), that is, z plus noise of standard deviation sqrt((1 - a_t) / a_t), scaled by sqrt(a_t).
"""

from __future__ import annotations

import math

import torch

ALPHAS = torch.Tensor
"""(T,) cumulative products a_t, falling"""


def noise_of_step(step_size: float) -> float:
    """Standard deviation of the quantisation noise of a uniform quantiser."""
    return step_size / math.sqrt(12)


def timestep_of_noise(alphas: ALPHAS, noise: float) -> int:
    """The timestep whose noise level is nearest, on a logarithmic scale; noise as a multiple of the clean latent's unit."""
    levels = torch.sqrt((1 - alphas) / alphas)
    return int((levels.log() - math.log(max(noise, 1e-6))).abs().argmin())


def descending(first: int, count: int) -> list[int]:
    """``count`` timesteps from ``first`` down, evenly spaced, ending one spacing above 0."""
    return [round(first * (count - index) / count) for index in range(count)]


def clean_latent(prediction_type: str, noisy: torch.Tensor, output: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """What the network's output says the clean latent is; ``noisy`` is z_t, ``alpha`` is a_t (broadcastable).

    ``epsilon``: Ho et al. 2020, eq. 15; ``v_prediction``: Salimans and Ho 2022, appendix D; ``sample``: the output itself.
    """
    if prediction_type == "epsilon":
        return (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()
    if prediction_type == "v_prediction":
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * output
    if prediction_type == "sample":
        return output
    raise ValueError(f"unknown prediction_type {prediction_type!r}")
