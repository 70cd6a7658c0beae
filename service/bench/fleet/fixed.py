"""`sdc serve` whose device does nothing but take its time: HTTP, door, admission, rows, batches, codec and store are the real ones.

``FIXED_S`` in the environment: ``{"encode": [0.3, 0.15], "render": [0.3, 0.15]}``, seconds for the first item of a batch and for each
further one, padding included.
"""

from __future__ import annotations

import json
import os
import runpy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import service.pipeline
from service.batching.device import Operation
from service.engine.engine import Engine
from service.pipeline import Computed, Noise

VARIABLE = "FIXED_S"


def operations(engine: Engine) -> dict[str, Operation]:
    """As ``service.pipeline.device_operations``: grey latents and black pictures, on time."""
    taken: dict[str, list[float]] = json.loads(os.environ[VARIABLE])
    factor, channels = engine.manifest.downscale, engine.manifest.latent_channels

    def sleep(operation: str, items: Sequence[Any]) -> float:
        first, further = taken[operation]
        seconds = first + further * (len(items) - 1)
        time.sleep(seconds)
        return seconds

    def encode(items: Sequence[tuple[np.ndarray[Any, Any], bool]]) -> Sequence[Computed]:
        seconds = {"encode": sleep("encode", items)}
        shapes = [(channels, pixels.shape[0] // factor, pixels.shape[1] // factor) for pixels, _ in items]
        return [Computed(np.zeros(shape, np.float32), seconds) for shape in shapes]

    def render(items: Sequence[tuple[np.ndarray[Any, Any], Noise]]) -> Sequence[Computed]:
        seconds = {"decode": sleep("render", items)}
        shapes = [(latent.shape[1] * factor, latent.shape[2] * factor, 3) for latent, _ in items]
        return [Computed(np.zeros(shape, np.uint8), seconds) for shape in shapes]

    return {"encode": encode, "render": render}


if __name__ == "__main__":
    service.pipeline.device_operations = operations
    runpy.run_module("service.cli", run_name="__main__")  # the command as it is: benchmarks do not import it
