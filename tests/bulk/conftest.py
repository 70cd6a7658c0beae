from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from service.bulk.compressor import Job
from service.options import CompressOptions
from service.pipeline import Pipeline
from service.settings import Settings
from service.telemetry import logs
from tests.conftest import make_picture, png

JobMaker = Callable[..., Job]


def fill(folder: Path, count: int, first: int = 0) -> list[str]:
    """Small pictures, all different; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"p{number}.png" for number in range(first, first + count)]
    for number, name in enumerate(names, first):
        (folder / name).write_bytes(png(make_picture(40 + number % 3, 50, number)))
    return names


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(make_picture(20, 20, seed)) for seed in (1, 2)]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about how soon the first picture is done."""

    async def nothing(self: Pipeline) -> None:
        pass

    monkeypatch.setattr(Pipeline, "warm_up", nothing)


@pytest.fixture(autouse=True)
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is run within the tests has a stderr that is closed after it: no place for a whole process's log."""
    monkeypatch.setattr(logs, "configure", lambda level: None)


@pytest.fixture
def photos_folder(tmp_path: Path) -> Path:
    fill(tmp_path / "photos", 5)
    return tmp_path / "photos"


@pytest.fixture
def job(settings: Settings, tmp_path: Path, photos_folder: Path) -> JobMaker:
    """A job from ``photos_folder`` to the store of ``settings``, with whatever is given otherwise."""

    def make(**changes: object) -> Job:
        given: dict[str, object] = {
            "base": str(photos_folder), "destination": settings.store_url, "options": CompressOptions(), "settings": settings,
        }  # fmt: skip
        return Job(**{**given, **changes})  # type: ignore[arg-type]

    return make
