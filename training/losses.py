"""What a decoded crop is judged by, for every stage: squared error, structure, SSIMULACRA2 and features, weighted by the quantiser step."""

from __future__ import annotations

import torch
from pytorch_msssim import ms_ssim
from torch import nn
from torch.nn import functional as F

from service.comparison.features import FeatureDistance
from training import machine
from training.config import Loss
from training.networks import squared_error
from training.ssimulacra import ssimulacra2

SCALES = (0.299, 0.314, 0.247, 0.140)
"""weights of MS-SSIM's second to fifth scale (Wang et al. 2003), made to sum to one: the first, worth 4 %, would cost most of the time"""


def structure_distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """1 - MS-SSIM from half resolution down, per picture; two (N, 3, H, W) tensors in -1..1, sides at least 200.  Returns (N,)."""
    halves = [F.avg_pool2d((picture.float() + 1) / 2, 2) for picture in (left, right)]
    similarity: torch.Tensor = ms_ssim(*halves, data_range=1, size_average=False, win_size=7, weights=list(SCALES))
    return 1 - similarity


class Distortion(nn.Module):
    """Weighted distortion of decoded crops.  Frozen; holds the feature network."""

    def __init__(self, config: Loss) -> None:
        super().__init__()
        self.config = config
        self.features = FeatureDistance("lite0").to(machine.device(), memory_format=torch.channels_last)

    def forward(self, decoded: torch.Tensor, pixels: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Distortion in units of bits per pixel, times the balance of the step.

        Args:
            decoded, pixels: (N, 3, S, S) in -1..1.
            step: (N,) raw quantiser step.

        Returns:
            The batch's loss, without the rate, and its parts for the log: ``mse`` (levels 0..255), ``structure``, ``ssimulacra`` and
            ``feature``.
        """
        loss, few = self.config, self.config.perceptual_crops
        mse = squared_error(decoded, pixels)
        squared = (step ** (loss.balance - loss.mse_exponent) * loss.mse * mse).mean()
        structure = structure_distance(decoded[:few], pixels[:few])
        ssimulacra = 1 - ssimulacra2(pixels[:few], decoded[:few], finest=1) / 100
        with machine.mixed():
            feature = self.features(decoded[:few], pixels[:few])
        onset = 1 / (1 + (loss.perceptual_onset / step[:few]) ** 4)
        weight = onset * step[:few] ** (loss.balance - loss.perceptual_exponent)
        perceptual = (weight * (loss.structure * structure + loss.ssimulacra * ssimulacra + loss.feature * feature)).mean()
        parts = {"mse": mse, "structure": structure, "ssimulacra": ssimulacra, "feature": feature}
        return squared + perceptual, {key: value.detach().mean() for key, value in parts.items()}
