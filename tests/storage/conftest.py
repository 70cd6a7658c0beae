"""One suite over every kind of store: a folder, memory, and two S3 servers (moto's, and Swift's, which has no conditional puts)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.storage.objects import Objects, open_store
from tests.stores import moto, swift

STORES = ["file", "memory", "s3", pytest.param("swift", marks=pytest.mark.system)]


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    with moto() as server:
        yield server.environment


@pytest.fixture(scope="session")
def swift_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with swift(tmp_path_factory.mktemp("swift")) as server:
        yield server.environment


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty store, with what its client needs in the environment."""
    if request.param in ("file", "memory"):
        return f"file://{tmp_path}/deep/store" if request.param == "file" else "memory:///"
    for name, value in request.getfixturevalue("s3" if request.param == "s3" else "swift_s3").items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def objects(store_url: str) -> Objects:
    return open_store(store_url)
