from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings


@pytest.fixture(scope="module")
def client(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The whole application on a small model, with an admin key."""
    folder = tmp_path_factory.mktemp("store")
    settings = Settings(
        model=small_model, store_url=f"file://{folder}", dtype="float32", admin_key="open, sesame, open",
        max_pixels=400_000, max_body_bytes=2_000_000,
    )  # fmt: skip
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def app_of(client: TestClient) -> FastAPI:
    assert isinstance(client.app, FastAPI)
    return client.app
