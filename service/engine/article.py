"""The article's restoration (Bühlmann, "Stable Diffusion based Image Compression", 2022), constant by constant.

A schedule of 66 PNDM steps, fifteen timesteps apart, entered so late that three calls of the U-Net are left, at t = 31, 16 and 1.  No
noise is added and nothing is scaled: the error of the palette is the noise.  That the scheduler takes the second of the three for the
repeated step that a full schedule begins with is the article's too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import torch

from service.errors import MethodUnavailable

SPACING = 15
"""timesteps from one step to the next"""
STRENGTH = 0.04
"""share of the schedule that is walked"""
OFFSET = 1
"""``steps_offset`` of Stable Diffusion's scheduler"""
PREDICTIONS = ("epsilon", "v_prediction")
"""from which PNDM takes its steps"""


def load_scheduler(folder: Path) -> diffusers.PNDMScheduler:
    """PNDM (Liu et al. 2022) over a model folder's own betas, as Stable Diffusion 1.x configures it; raises OSError."""
    return diffusers.PNDMScheduler.from_pretrained(
        folder, subfolder="scheduler", local_files_only=True,
        skip_prk_steps=True, set_alpha_to_one=False, steps_offset=OFFSET, timestep_spacing="leading",
    )  # fmt: skip


def enter(scheduler: diffusers.PNDMScheduler) -> torch.Tensor:
    """Begin anew; the timesteps to walk, falling.  As diffusers' image-to-image pipeline of 2022 chose them.

    Raises MethodUnavailable for a model that cannot be walked so.
    """
    steps = scheduler.config.num_train_timesteps // SPACING
    if not steps or scheduler.config.prediction_type not in PREDICTIONS:
        raise MethodUnavailable(
            f"the article's steps are for U-Nets that predict {' or '.join(PREDICTIONS)}, of {SPACING} timesteps at least: ask for another "
            "number of steps, or serve a Stable Diffusion checkpoint"
        )
    scheduler.set_timesteps(steps)
    walked = min(int(steps * STRENGTH) + OFFSET, steps)
    timesteps: torch.Tensor = scheduler.timesteps[max(steps - walked + OFFSET, 0) :]
    return timesteps


def restore(
    scheduler: diffusers.PNDMScheduler, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], sent: torch.Tensor
) -> torch.Tensor:
    """Walk the last steps.

    Args:
        scheduler: of ``load_scheduler``; one caller at a time.
        predict: the U-Net: (N, C, h, w) and timesteps (N,) to its output.
        sent: (N, C, h, w) normalised latents as they were read.

    Returns:
        the same, cleaned.

    Raises the error of ``enter``.
    """
    latent = sent
    for timestep in enter(scheduler):
        output = predict(latent, timestep.expand(len(latent)).to(latent.device))
        latent = scheduler.step(output, timestep, latent).prev_sample
    return latent
