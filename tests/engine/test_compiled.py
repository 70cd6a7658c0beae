"""On the compiler's front alone (``eager``): no machine that runs the tests need have a C++ compiler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch._dynamo.utils import counters

from service.engine.compiled import Buckets
from service.engine.engine import Engine
from service.errors import OutOfMemory
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


class Fake:
    """Records as CUDA does: fixed inputs, results that the next replay overwrites and that are therefore copied."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.recorded, self.replayed = fails, 0, 0

    def record(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        assert torch.backends.cudnn.benchmark
        self.recorded += 1

        def replay(*args: Any, **kwargs: Any) -> Any:
            self.replayed += 1
            return call(*args, **kwargs)

        return replay


def recorded_engine(folder: Path, fake: Fake, backend: str | None = None) -> Engine:
    engine = Engine(folder, dtype="float32")
    engine._buckets = Buckets(backend, fake)
    engine._networks.prepare(engine._buckets)
    return engine


@pytest.mark.parametrize("backend", [None, "eager"])
def test_only_warm_shapes_are_replayed(backend: str | None, small_model: Path) -> None:
    fake = Fake()
    engine = recorded_engine(small_model, fake, backend)
    expected = journey(engine, 64, 1)
    assert (fake.recorded, fake.replayed) == (0, 0)
    with engine.warming():
        journey(engine, 64, 1)
        journey(engine, 64, 1)
    assert (fake.recorded, fake.replayed) == (3, 6)  # encoder, U-Net, decoder
    assert not torch.backends.cudnn.benchmark
    assert np.abs(journey(engine, 64, 1).astype(int) - expected).max() <= 1
    journey(engine, 96, 1)
    assert (fake.recorded, fake.replayed) == (3, 9)


def test_what_cannot_be_recorded_runs_all_the_same(small_model: Path) -> None:
    engine = recorded_engine(small_model, Fake(fails=True))
    with engine.warming(), capture_logs() as logs:
        shown = journey(engine, 64, 1)
    assert {log["event"] for log in logs} == {"not recorded"}
    assert (shown == journey(Engine(small_model, dtype="float32"), 64, 1)).all()


def test_too_little_memory_to_record_is_said(small_model: Path) -> None:
    fake = Fake()
    fake.record = Mock(side_effect=torch.OutOfMemoryError("out of memory"))  # type: ignore[method-assign]
    engine = recorded_engine(small_model, fake)
    with engine.warming(), pytest.raises(OutOfMemory):
        journey(engine, 64, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", ["residual", "kl", "tiny"])
def test_a_gpu_replays_what_it_was_shown(kind: str, model_of: Callable[[str], Path]) -> None:
    plain = Engine(model_of(kind), device="cuda", dtype="float32", graphs=False)
    engine = Engine(model_of(kind), device="cuda", dtype="float32", compiled=False)
    with engine.warming(), capture_logs() as logs:
        for batch in (1, 2):
            journey(engine, 64, batch)
    assert not logs
    for batch in (2, 1, 2, 3):
        assert np.abs(journey(engine, 64, batch).astype(int) - journey(plain, 64, batch)).max() <= 1
