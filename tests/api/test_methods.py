"""The article's methods over HTTP, on a model whose latent has four channels and on one whose has not."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.app import create_app
from service.codec import container
from service.settings import BUNDLED_MODEL, Settings
from tests.conftest import make_picture, png, psnr

PICTURE = make_picture(64, 96)
PHOTO = png(PICTURE)


def client_of(model: Path) -> TestClient:
    return TestClient(create_app(Settings(model=model, store_url="memory:///", dtype="float32")))


@pytest.fixture(scope="module")
def kl(model_of: Callable[[str], Path]) -> Iterator[TestClient]:
    with client_of(model_of("kl")) as client:
        yield client


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_palette_there_and_back(kl: TestClient) -> None:
    made = kl.post("/compress?method=palette", content=PHOTO)
    assert made.status_code == 201
    body = made.json()
    assert body["method"] == "palette"
    again = kl.post("/compress?method=palette", content=PHOTO)
    assert (again.status_code, again.json()) == (200, body)
    blob = kl.get(body["links"]["blob"]).content
    parsed = container.parse(blob, 1 << 20)
    assert (parsed.version, parsed.method) == (3, 1)
    article = kl.get(f"{body['links']['png']}?steps=article")
    assert article.headers["sdc-variant"].startswith('model="small-kl-1", steps=article')
    shown = {steps: pixels(kl.get(f"{body['links']['png']}?steps={steps}").content) for steps in ("0", "2", "article")}
    assert all(picture.shape == (64, 96, 3) for picture in shown.values())
    assert len({picture.tobytes() for picture in shown.values()}) == 3
    other = kl.post("/decompress?format=png&steps=article", content=blob)
    assert psnr(pixels(other.content), shown["article"]) > 50


def test_one_spelling(kl: TestClient) -> None:
    made = kl.post("/compress?method=palette", content=PHOTO).json()
    reply = kl.get(f"{made['links']['webp']}?steps=article&w=50", follow_redirects=False)
    assert (reply.status_code, reply.headers["location"]) == (308, f"{made['links']['webp']}?w=50&steps=article")
    assert pixels(kl.get(reply.headers["location"]).content).shape[1] == 50


def test_an_id_for_each_way(kl: TestClient) -> None:
    ways = ("", "?dither=1", "?method=palette", "?max_bytes=1500", "?max_bytes=1500&dither=1")
    assert len({kl.post(f"/compress{way}", content=PHOTO).json()["id"] for way in ways}) == 5
    assert kl.post("/compress?dither=0", content=PHOTO).json() == kl.post("/compress", content=PHOTO).json()


def test_dither_comes_from_the_photo(kl: TestClient) -> None:
    """The same photo twice is the same file; another has another seed."""

    def seed(photo: bytes) -> int | None:
        reply = kl.post("/compress?dither=1&quality=60", content=photo, headers={"accept": "application/vnd.sdc"})
        return container.parse(reply.content, 1 << 20).seed

    assert seed(PHOTO) == seed(PHOTO) != seed(png(make_picture(64, 96, 1)))
    assert seed(PHOTO) is not None


def test_other_latents_have_no_palette() -> None:
    """422 before any work."""
    with client_of(BUNDLED_MODEL) as client:
        refused = client.post("/compress?method=palette", content=PHOTO)
        made = client.post("/compress", content=PHOTO).json()
        for reply in (refused, client.get(f"{made['links']['webp']}?steps=article")):
            assert reply.status_code == 422
            assert reply.json()["type"].endswith("method-unavailable")
            assert "those of model 'bundled' have" in reply.json()["detail"]
