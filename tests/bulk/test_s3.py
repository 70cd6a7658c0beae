"""Buckets on both sides: a real S3 protocol server, in this process."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.app import create_app
from service.bulk import sources
from service.bulk.rows import Source
from service.bulk.sources import Reader, listed, understand
from service.cli import app
from service.errors import NotFound, StoreUnavailable
from service.settings import Settings
from tests.bulk.conftest import fill
from tests.stores import REGION, moto


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in [each for each in os.environ if each.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        monkeypatch.delenv(name)
    with moto() as server:
        more = {"AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT": server.endpoint, "AWS_ALLOW_HTTP": "true"}
        for name, value in (server.environment | more).items():
            monkeypatch.setenv(name, value)
        httpx.post(f"{server.endpoint}/moto-api/reset").raise_for_status()  # it keeps its buckets from one server to the next
        client = boto3.client("s3", endpoint_url=server.endpoint)
        for bucket in ("photos", "store"):
            client.create_bucket(Bucket=bucket)
        yield client


def test_from_bucket_to_bucket_and_a_service_on_it(s3: Any, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = fill(tmp_path / "photos", 3)
    for name in names:
        s3.upload_file(str(tmp_path / "photos" / name), "photos", f"shop/deep/{name}")
    s3.put_object(Bucket="photos", Key="shop/.hidden.png", Body=b"x")
    s3.put_object(Bucket="photos", Key="shopping.png", Body=b"x")
    monkeypatch.setenv("SDC_MODEL", str(small_model))
    monkeypatch.setenv("SDC_DTYPE", "float32")
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, ["bulk", "s3://photos/shop", "s3://store/sdc", "--manifest", str(out)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["source"] for row in rows) == [f"deep/{name}" for name in names]
    keys = {each["Key"] for each in s3.list_objects_v2(Bucket="store")["Contents"]}
    assert keys >= {f"sdc/blobs/{row['id']}.{suffix}" for row in rows for suffix in ("sdc", "json")}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"source": f"s3://photos/shop/deep/{name}"}) + "\n" for name in names))
    again = CliRunner().invoke(app, ["bulk", str(tmp_path / "in.jsonl"), "s3://store/sdc"])
    assert "3 known" in again.output
    with TestClient(create_app(Settings(store_url="s3://store/sdc", render_cache_bytes=0))) as client:
        for row in rows:
            assert client.get(f"/render/{row['id']}.png").status_code == 200


def test_a_long_listing_comes_page_by_page(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LISTED_AT_ONCE", 2)
    for number in range(5):
        s3.put_object(Bucket="photos", Key=f"{number}", Body=b"x" * number)
    found = listed(understand("s3://photos"), ["*"])
    assert next(found) == Source("0", 0)
    assert [each.source_bytes for each in found] == [1, 2, 3, 4]


def test_marks_of_folders_are_no_pictures(s3: Any) -> None:
    """Consoles make them: empty objects whose names end in a slash, one of the prefix itself among them."""
    for key, body in (("shop/", b""), ("shop/summer/", b""), ("shop/summer/1.png", b"x"), ("shop/empty.png", b"")):
        s3.put_object(Bucket="photos", Key=key, Body=body)
    found = [(each.source, each.source_bytes) for each in listed(understand("s3://photos/shop"), [])]
    assert sorted(found) == [("empty.png", 0), ("summer/1.png", 1)]


def test_a_name_that_ends_the_listing_is_told(s3: Any) -> None:
    s3.put_object(Bucket="photos", Key="shop//2.png", Body=b"x")
    with pytest.raises(StoreUnavailable, match=r"shop//2.*rename it, or give a manifest"):
        list(listed(understand("s3://photos"), []))
    with pytest.raises(NotFound, match="no name that can be asked for"):
        asyncio.run(Reader("s3://photos", 10.0).read("shop//2.png"))


def test_what_is_not_there_is_told(s3: Any) -> None:
    with pytest.raises(NotFound, match=r"there is no nowhere\.jpg"):
        asyncio.run(Reader("s3://photos", 10.0).read("nowhere.jpg"))
    with pytest.raises(StoreUnavailable, match="cannot be listed"):
        next(listed(understand("s3://no-such-bucket"), []))
