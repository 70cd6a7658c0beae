"""Pictures whose times are chosen, for the simulator."""

from service.bench.fleet.measured import Measured, Operation, Picture
from service.bench.fleet.replica import Limits

UNBOUNDED = Limits(10**9, 1, 1 << 60, 0.0, 10**6, float("inf"))


def picture(
    operation: Operation = "render", device_s: float = 0.1, full_s: float | None = None, aside_s: float = 1e-9, shape: str = "one"
) -> Picture:
    return Picture(
        operation=operation, shape=shape, pixels=1 << 18, begin_s=[aside_s], alone_s=[device_s], full_s=[full_s or 4 * device_s],
        finish_s=[aside_s], outside_s=[1e-9],
    )  # fmt: skip


def measured(*pictures: Picture, max_batch: int = 4) -> Measured:
    return Measured(
        machine="made up", model="made up", max_batch=max_batch, cpu_workers=2, ready_s=20, contention={"compress": 1, "render": 1},
        pictures=list(pictures),
    )  # fmt: skip
