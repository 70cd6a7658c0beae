"""What the rest of the service means by a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.uint8]
LARGEST_SIDE = 65535
"""pixels; what JPEG can say of itself, and more than any photograph needs"""


@dataclass(frozen=True)
class Picture:
    """Upright, 8-bit, sRGB, no metadata."""

    rgb: Plane
    """(H, W, 3)"""
    alpha: Plane | None = None
    """(H, W), straight (not premultiplied); None when the picture is opaque"""

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    def image(self) -> Image.Image:
        """As Pillow's: RGBA where there is an alpha plane, else RGB."""
        image = Image.fromarray(self.rgb)
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        return image
