"""What the rest of the service means by a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.uint8]
LARGEST_SIDE = 65535
"""pixels; what JPEG and the container can say of themselves, and more than any photograph needs"""


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

    @property
    def grey(self) -> bool:
        """Whether it has no colours: red, green and blue are the same in every pixel."""
        first = self.rgb[:, :, 0]
        return all(np.array_equal(first, self.rgb[:, :, other]) for other in (1, 2))

    def image(self) -> Image.Image:
        """As Pillow's: RGBA where there is an alpha plane, else RGB."""
        image = Image.fromarray(self.rgb)
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        return image


def greyed(rgb: Plane) -> Plane:
    """The mean of each pixel's three numbers, three times: errors of a grey picture that was coded in colours cancel in part."""
    mean = (rgb.sum(2, dtype=np.uint16) + 1) // 3
    return np.repeat(mean.astype(np.uint8)[:, :, None], 3, 2)
