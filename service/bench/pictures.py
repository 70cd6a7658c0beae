"""The pictures a benchmark runs on, and the words that name them and the machine."""

from __future__ import annotations

import io
import platform
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from service.errors import BadParameter, SdcError
from service.imaging.opening import open_picture, photographs

Plane = npt.NDArray[np.uint8]


def load(folder: Path, crop: int, limit: int | None) -> dict[str, Plane]:
    """Name to uint8 (H, W, 3), sorted by name; centre crops of side ``crop``, or whole where it is 0.  Raises BadParameter for none."""
    found = {}
    for path in photographs(folder, "*"):
        try:
            rgb = open_picture(path.read_bytes(), 1 << 30).rgb
        except SdcError as error:
            raise BadParameter(f"{path}: {error.detail}") from error
        height, width = rgb.shape[:2]
        if crop and min(height, width) < crop:
            continue
        if crop:
            top, left = (height - crop) // 2, (width - crop) // 2
            rgb = np.ascontiguousarray(rgb[top : top + crop, left : left + crop])
        found[path.name if path.stem in found else path.stem] = rgb  # cat.jpg beside cat.png
        if limit is not None and len(found) == limit:
            break
    if not found:
        raise BadParameter(f"{folder} holds no pictures" + (f" of at least {crop} pixels a side" if crop else ""))
    return found


def on_white(pixels: Plane) -> Plane:
    """As a product is shown: the middle of a picture, an ellipse of three fifths of its sides with a smooth edge, on white of its size."""
    height, width = pixels.shape[:2]
    inner = Image.fromarray(pixels).resize((round(0.6 * width), round(0.6 * height)), Image.Resampling.LANCZOS)
    edge = Image.new("L", (4 * inner.width, 4 * inner.height))
    ImageDraw.Draw(edge).ellipse((0, 0, edge.width - 1, edge.height - 1), fill=255)
    page = Image.new("RGB", (width, height), "white")
    page.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2), edge.resize(inner.size, Image.Resampling.BOX))
    return np.asarray(page)


def as_png(pixels: Plane) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def machine() -> str:
    """Processor and Python, for the head of a report."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, Python {platform.python_version()}"
