"""`sdc serve` whose device takes a second and a half for every render: long enough for others to want the same."""

import time
from collections.abc import Sequence
from typing import Any

import service.pipeline
from service.batching.device import Ending, Operation
from service.cli import app

RENDER_S = 1.5
real = service.pipeline.device_operations


def operations(engine: Any) -> dict[str, Operation]:
    made = real(engine)

    def render(items: Sequence[Any]) -> Sequence[Any] | Ending:
        time.sleep(RENDER_S)
        return made["render"](items)

    return {**made, "render": render}


if __name__ == "__main__":
    service.pipeline.device_operations = operations
    app()
