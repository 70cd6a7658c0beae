"""On the compiler's front alone (``eager``): no machine that runs the tests need have a C++ compiler."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch._dynamo.utils import counters

from service.engine.engine import Engine
from tests.conftest import make_picture


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def journey(engine: Engine, side: int, batch: int) -> np.ndarray:
    pixels = np.stack([make_picture(side, side, seed) for seed in range(batch)])
    latents = engine.encode(pixels)
    return engine.decode(engine.restore(latents, np.full(batch, 0.5, np.float32), 1))


@pytest.mark.parametrize("kind", ["residual", "kl", "tiny"])
def test_only_warm_shapes_are_compiled(kind: str, model_of: Callable[[str], Path]) -> None:
    engine = Engine(model_of(kind), dtype="float32", compiled=True, backend="eager")
    plain = Engine(model_of(kind), dtype="float32")
    before = graphs()
    journey(engine, 64, 1)
    assert graphs() == before  # not warmed up yet
    assert engine.makes_kernels
    with engine.warming():
        for batch in (1, 2):
            journey(engine, 64, batch)
    warm = graphs()
    assert warm > before  # equal networks of two engines share what was compiled
    for side, batch in ((64, 1), (64, 2), (96, 1), (64, 3), (128, 2)):
        assert np.abs(journey(engine, side, batch).astype(int) - journey(plain, side, batch)).max() <= 1
    assert graphs() == warm


def test_what_cannot_be_compiled_runs_all_the_same(model_of: Callable[[str], Path]) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    engine = Engine(model_of("residual"), dtype="float32", compiled=True, backend=broken)  # type: ignore[arg-type]
    with engine.warming(), capture_logs() as logs:
        shown = journey(engine, 64, 1)
    assert {log["event"] for log in logs} == {"not compiled"}
    assert (shown == journey(Engine(model_of("residual"), dtype="float32"), 64, 1)).all()


def test_on_a_processor_nothing_is_compiled(small_model: Path) -> None:
    assert Engine(small_model, device="cpu")._buckets is None
