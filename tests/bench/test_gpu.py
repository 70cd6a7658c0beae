import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from service.bench import full_size, gpu
from service.codec.codec import Codec
from service.engine.engine import Engine
from service.manifest import read_manifest
from service.settings import Settings
from tests.checkpoints.conftest import make_unet, make_vae


@contextmanager
def plain(expression: str) -> Iterator[Callable[[], float]]:
    """``gpu.apart``, without the minutes it takes."""
    assert expression == "gpu.plain_render(64)"
    yield lambda: 12.0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "vae", make_vae)
    monkeypatch.setattr(full_size, "unet", lambda: make_unet(width=full_size.WIDTH))
    monkeypatch.setattr(gpu, "SIDES", (64,))
    monkeypatch.setattr(gpu, "CEILING_SIDE", {"cpu": 64})
    monkeypatch.setattr(gpu, "costs", gpu.costs.__wrapped__)
    monkeypatch.setattr(gpu, "apart", plain)


def test_operations_are_those_of_stable_diffusion() -> None:
    """1.1, 0.8 and 2.5 TFLOP for 512x512, a render the last two; the full-size modules have 84 and 860 million parameters."""
    costs = gpu.costs(512)
    counted = {name: round(cost.flops / 1e12, 1) for name, cost in costs.items()}
    assert counted == {"encode": 1.1, "U-Net step": 0.8, "decode": 2.5, "render": 3.3}
    assert all(100 < cost.launches < 2000 for cost in costs.values())
    with torch.device("meta"):
        sizes = [sum(each.numel() for each in network.parameters()) for network in (full_size.vae(), full_size.unet())]
    assert [round(size / 1e6) for size in sizes] == [84, 860]


def test_plain_diffusers_are_measured_in_a_process_where_nothing_is_tuned() -> None:
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    with gpu.apart("iter((gpu.os.getpid(), gpu.os.environ['THP_MEM_ALLOC_ENABLE'])).__next__") as call:
        assert call() not in (0, os.getpid()) and call() == 0
    with pytest.raises(RuntimeError, match="beside this one failed"), gpu.apart("gpu.nothing_like_it"):
        pass


def test_plain_diffusers_take_time(small: None) -> None:
    assert gpu.plain_render(64)() > 0


def test_it_runs_and_says_what_it_predicts(small: None) -> None:
    out = Console(file=io.StringIO(), width=200)
    gpu.main(Settings(device="cpu"), gpu.Terms(), out)
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert "TFLOP/s; predicted: an H200" in said and "predicted ms" in said
    assert said.count(" and 12.00 s") == gpu.PAIRS and "times as long, the median; the GPU's times are predicted" in said
    for operation in ("encode", "U-Net step", "decode", "render"):
        assert operation in said


def test_what_a_gpu_is_asked(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of a processor: a line and an entry of the file for each figure, the compiled networks last."""
    monkeypatch.setattr(gpu, "measured_as_gpu", lambda device: True)
    monkeypatch.setattr(gpu, "Engine", partial(Engine, backend="eager"))
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu, "REPEATS", 4)
    monkeypatch.setattr(gpu, "SERVICE_PICTURES", 6)
    monkeypatch.setattr(gpu, "PROCESSES", (1, 2))
    out = Console(file=io.StringIO(), width=200)
    gpu.main(Settings(device="cpu", dtype="float32"), gpu.Terms((64, 128), folder=tmp_path / "gpu"), out)
    said = out.file.getvalue()  # type: ignore[attr-defined]
    figures = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert len(figures) == len(said.splitlines()) and figures[0]["ceiling_tflops"] > 0
    ways = [figure["way"].partition(" (")[0] for figure in figures if figure.get("side") == 64 and figure.get("operation") == "decode"]
    assert ways[:3] == ["as launched", "replayed", "replayed, the best batch"] and set(ways[3:]) == {"compiled"}
    served = [(figure["operation"], figure["processes"]) for figure in figures if "of_bare" in figure]
    assert served == [(f"service {journey}", processes) for processes in (1, 2) for journey in ("compress", "render")]
    assert any(figure.get("side") == 128 for figure in figures)
    assert not torch.backends.cudnn.benchmark


def test_services_beside_each_other_fail_together(tmp_path: Path) -> None:
    """One that cannot start leaves none of the others waiting, and is told of."""
    with pytest.raises(RuntimeError, match="2 services beside each other failed"):
        gpu.several(Settings(device="cpu", model=tmp_path), 64, 2, 2)


def test_nothing_is_begun_when_the_time_is_up(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "measured_as_gpu", lambda device: True)
    out = Console(file=io.StringIO(), width=200)
    gpu.main(Settings(device="cpu", dtype="float32"), gpu.Terms(seconds=0), out)
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert "64x64 encode: no time left for larger batches" in said and "service" not in said and "compiled" not in said


def test_larger_batches_are_tried_while_they_pay(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(full_size.build(tmp_path / "model"), dtype="float32")
    taken = {1: 1.0, 2: 1.2, 4: 2.0, 8: 4.1, 16: 1.0}
    batches = iter(taken)
    monkeypatch.setattr(gpu, "in_a_row", lambda begin, repeats: taken[next(batches)])
    assert gpu.best_batch(engine, 64, "decode", list(taken), 1) == (4, 2.0)

    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(gpu, "in_a_row", full)
    assert gpu.best_batch(engine, 64, "decode", [1, 2], 1) == (1, 0.0)


def test_a_folder_of_random_weights_is_a_model(small: None, tmp_path: Path) -> None:
    folder = full_size.build(tmp_path / "model", ([0.1] * 4, [0.2] * 4))
    engine = Engine(folder, dtype="float32")
    engine.check()
    assert engine.manifest.latent_std == [0.2] * 4
    assert Codec(folder, read_manifest(folder)).latent_shape(512, 512) == (4, 64, 64)
