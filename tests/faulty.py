"""`sdc serve` with a device that misbehaves when it sees a flat picture: white kills its thread, grey takes a second and a half."""

import time
from collections.abc import Sequence
from typing import Any

import service.pipeline
from service.batching.device import Ending, Operation
from service.cli import app

GREY_S = 1.5
real = service.pipeline.device_operations


def operations(engine: Any) -> dict[str, Operation]:
    made = real(engine)

    def encode(items: Sequence[Any]) -> Sequence[Any] | Ending:
        if any((pixels == 255).all() for pixels, _ in items):
            raise SystemExit("the driver is gone")
        if any((pixels == 128).all() for pixels, _ in items):
            time.sleep(GREY_S)
        return made["encode"](items)

    return {**made, "encode": encode}


if __name__ == "__main__":
    service.pipeline.device_operations = operations
    app()
