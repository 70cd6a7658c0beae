"""``make demo``: a real server, real photographs, a table and one picture to look at."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import skimage.data
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.bench.pictures import as_png
from service.bench.serving import Server, serving
from service.bench.show import side_by_side
from service.comparison.metrics import NAMES, Plane, Quality, measure
from service.comparison.rivals import RIVALS, at_least

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
BITS_PER_PIXEL = 0.155
SHOWN = "chelsea"
PICTURE = Path("out/demo.png")


def main() -> None:
    """Run the demo; leaves ``out/demo.png``."""
    console = Console()
    started = time.monotonic()
    with _serving() as server, httpx.Client(base_url=server.base, timeout=60) as client:
        console.print(f"the service was ready after {time.monotonic() - started:.1f} s", highlight=False)
        table = Table("photograph", "file", "bytes", *NAMES, title="one photograph each, the rivals at at least our bytes")
        for name in PHOTOGRAPHS:
            pixels = np.ascontiguousarray(getattr(skimage.data, name)())
            shown = _one(client, name, pixels, table)
            console.print(f"{name}: {len(shown['sdc'][0]):,} bytes, compared with the rivals", highlight=False)
            if name == SHOWN:
                PICTURE.parent.mkdir(exist_ok=True)
                sizes = {"original": (as_png(pixels), pixels), **shown}
                side_by_side({name: (len(content), plane) for name, (content, plane) in sizes.items()}).save(PICTURE)
    console.print()
    console.print(table)
    console.print(f"side by side: {PICTURE.resolve()}", highlight=False, soft_wrap=True)


@contextmanager
def _serving() -> Iterator[Server]:
    """A quiet service whose store vanishes."""
    try:
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder), SDC_LOG_LEVEL="warning") as server:
            yield server
    except RuntimeError as error:
        raise SystemExit(str(error)) from error


def _one(client: httpx.Client, name: str, pixels: Plane, table: Table) -> dict[str, tuple[bytes, Plane]]:
    """Compress and render one photograph over HTTP, code it with the rivals, add the rows; returns each file and what it shows."""
    original = as_png(pixels)
    max_bytes = round(BITS_PER_PIXEL * pixels.shape[0] * pixels.shape[1] / 8)
    reply = client.post("/compress", params={"max_bytes": max_bytes}, content=original).raise_for_status().json()
    blob = client.get(reply["links"]["blob"]).raise_for_status().content
    png = client.get(reply["links"]["png"]).raise_for_status().content
    shown = {"sdc": (blob, np.asarray(Image.open(io.BytesIO(png))))}
    shown |= {rival: at_least(encode, pixels, len(blob)) for rival, encode in RIVALS.items()}
    table.add_row(name, "original", f"{len(original):,}")
    for label, (content, picture) in shown.items():
        table.add_row("", label, f"{len(content):,}", *_cells(measure(pixels, picture)))
    table.add_section()
    return shown


def _cells(quality: Quality) -> list[str]:
    return [f"{quality.psnr:.2f}", f"{quality.ms_ssim:.3f}", f"{quality.ssimulacra2:.1f}", f"{quality.feature:.3f}"]


if __name__ == "__main__":
    main()
