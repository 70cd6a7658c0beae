from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from service.api.access import Access
from service.codec import container
from tests.conftest import make_picture, png

PHOTO = png(make_picture(50, 70, 9))
ADMIN = {"authorization": "Bearer sesame"}


def blob_of(client: TestClient, quality: int = 50) -> bytes:
    return client.post(f"/compress?quality={quality}", content=PHOTO, headers={"accept": "application/vnd.sdc"}).content


def test_upload_is_named_by_its_digest(client: TestClient) -> None:
    content = blob_of(client)
    first, second = client.post("/blobs", content=content), client.post("/blobs", content=content)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    stored = client.get(first.headers["location"])
    assert stored.content == content
    assert client.get(f"/render/{first.json()['id']}.png").status_code == 200


def test_only_what_can_be_rendered_is_stored(client: TestClient) -> None:
    content = blob_of(client)
    blob = container.parse(content, 1 << 20)
    foreign = container.write(container.Blob(b"none", b"none", 70, 50, 0, 128, blob.sections))
    other_model = container.write(replace(blob, model_identity=b"none"))
    bad_alpha = container.write(replace(blob, sections={**blob.sections, container.ALPHA: b"no picture"}))
    short = container.write(container.Blob(blob.code_identity, blob.model_identity, 620, 620, 0, 128, {0: b""}))
    refused = [(foreign, "wrong-model"), (other_model, "wrong-model"), (bad_alpha, "corrupt-blob")]
    for bad, kind in (*refused, (short, "corrupt-blob"), (content[:-2], "corrupt-blob"), (PHOTO, "not-a-blob")):
        reply = client.post("/blobs", content=bad)
        assert reply.json()["type"] == f"urn:sdc:problem:{kind}"
        assert reply.status_code in (415, 422)


def test_blobs_have_strong_tags(client: TestClient) -> None:
    path = client.post("/blobs", content=blob_of(client, 40)).headers["location"]
    reply = client.get(path)
    tag = reply.headers["etag"]
    assert tag.startswith('"')
    assert reply.headers["content-type"] == "application/vnd.sdc"
    assert client.get(path, headers={"if-none-match": tag}).status_code == 304
    head = client.head(path)
    assert head.content == b""
    assert head.headers["content-length"] == str(len(reply.content))


def test_deleting_needs_the_key_and_is_remembered(client: TestClient) -> None:
    location = client.post("/compress?quality=3", content=PHOTO).headers["location"]
    blob_id = location.removeprefix("/render/")
    tag = client.head(location + ".png").headers["etag"]
    assert client.delete(f"/blobs/{blob_id}").status_code == 401
    assert client.delete(f"/blobs/{blob_id}", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.delete(f"/blobs/{blob_id}", headers=ADMIN).status_code == 204
    for path in (location, location + ".png", f"/blobs/{blob_id}", f"/blobs/{blob_id}/info"):
        assert client.get(path, headers={"if-none-match": tag}).status_code == 410
    assert client.delete(f"/blobs/{blob_id}", headers=ADMIN).status_code == 410
    assert client.post("/compress?quality=3", content=PHOTO).status_code == 201
    assert client.get(location).status_code == 200


def test_deleting_is_off_without_a_key(client: TestClient, monkeypatch: object) -> None:
    services = client.app.state.services  # type: ignore[attr-defined]
    without = services.settings.model_copy(update={"admin_key": None})
    client.app.state.services = replace(services, access=Access(without))  # type: ignore[attr-defined]
    try:
        assert client.delete("/blobs/" + "a" * 26, headers=ADMIN).status_code == 403
    finally:
        client.app.state.services = services  # type: ignore[attr-defined]


def test_missing_ids(client: TestClient) -> None:
    for path in ("/render/" + "a" * 26, "/render/" + "a" * 26 + ".png", "/blobs/" + "a" * 26, "/blobs/short", "/render/UPPER"):
        reply = client.get(path)
        assert reply.status_code == 404
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["cache-control"] == "public, max-age=10"


@pytest.mark.parametrize(
    ("failure", "status", "kind"), [(TimeoutError(), 504, "store-too-slow"), (OSError(5, "I/O error"), 503, "store-unavailable")]
)
def test_a_store_that_fails(client: TestClient, monkeypatch: pytest.MonkeyPatch, failure: OSError, status: int, kind: str) -> None:
    def get(*_: object) -> None:
        raise failure

    monkeypatch.setattr("service.storage.objects.obstore.get", get)
    for method, path in (("POST", "/compress?quality=77"), ("GET", "/blobs/" + "a" * 26)):
        reply = client.request(method, path, content=PHOTO if method == "POST" else None)
        assert (reply.status_code, reply.json()["type"]) == (status, f"urn:sdc:problem:{kind}")
        assert (reply.headers["retry-after"], reply.headers["cache-control"]) == ("5", "no-store")
        assert "I/O" not in reply.text
