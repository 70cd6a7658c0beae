"""What a decoded crop is judged by, for every stage: squared error, structure, SSIMULACRA2 and features, weighted by the quantiser step."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from service.comparison.features import FeatureDistance
from training import machine
from training.config import Loss
from training.networks import squared_error
from training.ssimulacra import gaussian, ssimulacra2

SCALES = (0.299, 0.314, 0.247, 0.140)
"""weights of MS-SSIM's second to fifth scale (Wang et al. 2003), made to sum to one: the first, worth 4 %, would cost most of the time"""


LEAST_MSE = 3.0
"""added to the squared error before its logarithm, levels 0..255 squared: below it (43 dB) nothing is to be gained"""
RADIUS, SIGMA = 3, 1.5
STABILITY = 0.01**2, 0.03**2
"""C1 and C2 of SSIM, for values in 0..1"""


@cache
def window(device: torch.device) -> torch.Tensor:
    """Gaussian taps of three colours, (3, 1, 2 * RADIUS + 1, 1), on the device, so that no step has to bring them there."""
    return gaussian(RADIUS, SIGMA).to(device).view(1, 1, -1, 1).repeat(3, 1, 1, 1)


def blur(pictures: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) to (N, 3, H - 6, W - 6)."""
    taps = window(pictures.device)
    return F.conv2d(F.conv2d(pictures, taps, groups=3), taps.mT, groups=3)


def structure_distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """1 - MS-SSIM from half resolution down, per picture; two (N, 3, H, W) tensors in -1..1, sides at least 200.  Returns (N,)."""
    one, other = (F.avg_pool2d((picture.float() + 1) / 2, 2) for picture in (left, right))
    c1, c2 = STABILITY
    product = torch.ones((), device=left.device)
    for index, exponent in enumerate(SCALES):
        if index:
            one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
        mean_one, mean_other = blur(one), blur(other)
        spread_one, spread_other = blur(one * one) - mean_one.square(), blur(other * other) - mean_other.square()
        both = blur(one * other) - mean_one * mean_other
        similarity = (2 * both + c2) / (spread_one + spread_other + c2)
        if index == len(SCALES) - 1:
            similarity = similarity * (2 * mean_one * mean_other + c1) / (mean_one.square() + mean_other.square() + c1)
        product = product * similarity.mean((2, 3)).clamp_min(0) ** exponent
    return 1 - product.mean(1)


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
        onset = 1 / (1 + (loss.perceptual_onset / step) ** 4)
        logarithm = (loss.fine_log_mse + (loss.log_mse - loss.fine_log_mse) * onset) * torch.log(mse + LEAST_MSE)
        squared = (step ** (loss.balance - loss.mse_exponent) * loss.mse * mse + logarithm).mean()
        structure = structure_distance(decoded[:few], pixels[:few])
        ssimulacra = 1 - ssimulacra2(pixels[:few], decoded[:few], finest=1) / 100
        with machine.mixed():
            feature = self.features(decoded[:few], pixels[:few])
        weight = onset[:few] * step[:few] ** (loss.balance - loss.perceptual_exponent)
        perceptual = (weight * (loss.structure * structure + loss.ssimulacra * ssimulacra + loss.feature * feature)).mean()
        parts = {"mse": mse, "structure": structure, "ssimulacra": ssimulacra, "feature": feature}
        return squared + perceptual, {key: value.detach().mean() for key, value in parts.items()}
