import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import obstore
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.api.access import Access
from service.codec import container
from service.codec.codec import Codec, Frame
from service.codec.container import scaled
from service.manifest import read_manifest
from service.storage.keeping import MOST_TAGS
from tests.conftest import make_picture, png

PHOTO = png(make_picture(50, 70, 9))
ADMIN = {"authorization": "Bearer open, sesame, open"}


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


def test_if_match_is_for_one_file_alone(client: TestClient) -> None:
    """RFC 9110, section 13.1.1."""
    path = client.post("/blobs", content=blob_of(client, 33)).headers["location"]
    tag = client.get(path).headers["etag"]
    for value, status in ((tag, 200), ("*", 200), (f'"other", {tag}', 200), ('"other"', 412), (f"W/{tag}", 412)):
        for method in ("GET", "HEAD"):
            assert client.request(method, path, headers={"if-match": value}).status_code == status
    refused = client.delete(path, headers={**ADMIN, "if-match": '"other"'})
    assert (refused.status_code, refused.json()["type"]) == (412, "urn:sdc:problem:precondition-failed")
    assert client.delete(path, headers={**ADMIN, "if-match": tag}).status_code == 204
    assert client.delete(path, headers={**ADMIN, "if-match": tag}).status_code == 410


def test_the_lines_of_a_header_are_read_together(client: TestClient) -> None:
    """RFC 9110, section 5.3."""
    path = client.post("/blobs", content=blob_of(client, 32)).headers["location"]
    tag = client.get(path).headers["etag"]
    assert client.get(path, headers=[("if-none-match", '"other"'), ("if-none-match", tag)]).status_code == 304
    accept = [("accept", "application/json;q=0.1"), ("accept", "application/vnd.sdc")]
    assert client.post("/compress?quality=32", content=PHOTO, headers=accept).headers["content-type"] == "application/vnd.sdc"


def test_an_upload_is_admitted_before_it_is_decoded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding a file that was made to be slow takes as long as many pictures."""
    batcher = client.app.state.services.pipeline.batcher  # type: ignore[attr-defined]
    claimed: list[tuple[str, int, str]] = []
    claim = batcher.admission.claim

    def noted(operation: str, pixels: int, lane: str, *more: object) -> object:
        claimed.append((operation, pixels, lane))
        return claim(operation, pixels, lane, *more)

    monkeypatch.setattr(batcher.admission, "claim", noted)
    content = blob_of(client, 31)
    claimed.clear()
    for _ in range(2):
        assert client.post("/blobs", content=content).status_code in (200, 201)
    ((operation, pixels, lane),) = claimed
    assert (operation, lane) == ("verify", "bulk")
    assert pixels >= 50 * 70


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


def store_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of what is read from the store from now on."""
    read: list[str] = []
    real = obstore.get

    def get(where: object, path: str) -> object:
        read.append(path)
        return real(where, path)  # type: ignore[arg-type]

    monkeypatch.setattr("service.storage.objects.obstore.get", get)
    return read


def test_304_and_head_read_no_blob(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = client.post("/compress?quality=4", content=PHOTO).json()["links"]["blob"]
    shown = client.get(path)
    read = store_reads(monkeypatch)
    head = client.head(path, headers={"range": "bytes=0-1"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(shown.content)))
    assert {name: head.headers[name] for name in ("etag", "accept-ranges", "cache-tag")} == {
        name: shown.headers[name] for name in ("etag", "accept-ranges", "cache-tag")
    }
    not_modified = client.get(path, headers={"if-none-match": f'"x", W/{shown.headers["etag"]}'})
    assert (not_modified.status_code, not_modified.headers["etag"]) == (304, shown.headers["etag"])
    assert not [each for each in read if each.endswith(".sdc")]
    assert client.get(path, headers={"if-none-match": '"other"'}).content == shown.content
    assert [each for each in read if each.endswith(".sdc")]


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-3", slice(0, 4)),
        ("bytes=4-", slice(4, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=-100000000", slice(None)),
        ("bytes=10-99999999999", slice(10, None)),
        ("Bytes= 0-0 ", slice(0, 1)),
    ],
)
def test_ranges(client: TestClient, asked: str, part: slice) -> None:
    path = client.post("/compress?quality=4", content=PHOTO).json()["links"]["blob"]
    whole = client.get(path).content
    reply = client.get(path, headers={"range": asked})
    begin, end, _ = part.indices(len(whole))
    assert (reply.status_code, reply.content) == (206, whole[part])
    assert reply.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(whole)}"
    assert reply.headers["content-length"] == str(end - begin)


@pytest.mark.parametrize("asked", ["bytes=5-4", "bytes=-", "bytes=a-b", "pages=0-1", "bytes=0-1,3-4", "bytes 0-1", "bytes=0x1-2", ""])
def test_ranges_that_are_ignored(client: TestClient, asked: str) -> None:
    path = client.post("/compress?quality=4", content=PHOTO).json()["links"]["blob"]
    assert client.get(path, headers={"range": asked}).status_code == 200


@pytest.mark.parametrize("asked", ["bytes=1000000-", "bytes=1000000-1000001", "bytes=-0"])
def test_ranges_beyond_the_end(client: TestClient, asked: str) -> None:
    path = client.post("/compress?quality=4", content=PHOTO).json()["links"]["blob"]
    size = len(client.get(path).content)
    reply = client.get(path, headers={"range": asked})
    assert (reply.status_code, reply.headers["content-range"]) == (416, f"bytes */{size}")
    assert reply.json()["type"] == "urn:sdc:problem:range-not-satisfiable"


def test_a_range_of_what_has_changed_is_no_range(client: TestClient) -> None:
    path = client.post("/compress?quality=4", content=PHOTO).json()["links"]["blob"]
    tag = client.get(path).headers["etag"]
    for known, status in ((tag, 206), (f"W/{tag}", 200), ('"other"', 200), ("Sun, 06 Nov 1994 08:49:37 GMT", 200)):
        assert client.get(path, headers={"range": "bytes=0-3", "if-range": known}).status_code == status


def test_an_older_sidecar_without_a_digest(client: TestClient) -> None:
    path = client.post("/compress?quality=5", content=PHOTO).json()["links"]["blob"]
    shown = client.get(path)
    services = client.app.state.services  # type: ignore[attr-defined]
    assert client.portal is not None
    client.portal.call(services.blobs.note, path.removeprefix("/blobs/"), {})
    assert client.head(path).headers["etag"] == shown.headers["etag"]
    assert client.get(path, headers={"if-none-match": shown.headers["etag"]}).status_code == 304


def test_callers_tag_what_they_want_to_purge(client: TestClient) -> None:
    first = client.post("/compress?quality=6&tag=product-7", content=PHOTO)
    links = first.json()["links"]
    blob_id = first.json()["id"]
    assert client.get(links["webp"]).headers["cache-tag"] == f"{blob_id},product-7"
    again = client.post("/compress?quality=6&tag=summer:sale", content=PHOTO)
    assert (again.status_code, again.json()["id"]) == (200, blob_id)
    assert client.post("/compress?quality=6&tag=product-7", content=PHOTO).status_code == 200
    for path in (links["webp"], links["render"], links["blob"]):
        shown = client.get(path)
        assert shown.headers["surrogate-key"] == f"{blob_id} product-7 summer:sale"
        kept = client.get(path, headers={"if-none-match": shown.headers["etag"]})
        assert (kept.status_code, kept.headers["cache-tag"]) == (304, f"{blob_id},product-7,summer:sale")
    assert client.get(links["info"]).json()["tags"] == ["product-7", "summer:sale"]
    assert client.post("/blobs?tag=blob-tag", content=client.get(links["blob"]).content).status_code == 201
    for tag in ("a b", "a,b", "", "-x", "x" * 65, "a%0d%0ab"):
        assert client.post(f"/compress?quality=6&tag={tag}", content=PHOTO).status_code == 400
    replies = [client.post(f"/compress?quality=6&tag=t{n}", content=PHOTO) for n in range(MOST_TAGS - 1)]
    assert [reply.status_code for reply in replies] == [200] * (MOST_TAGS - 2) + [400]


def test_a_picture_that_was_coded_smaller_is_told_and_rendered_at_its_size(client: TestClient, small_model: Path) -> None:
    codec = Codec(small_model, read_manifest(small_model))
    latent = np.random.default_rng(3).normal(size=codec.latent_shape(*scaled(70, 50, 6))).astype(np.float32)
    location = client.post("/blobs", content=container.write(codec.encode(latent, Frame(70, 50, scale=6), 128))).headers["location"]
    info = client.get(f"{location}/info").json()
    assert (info["width"], info["height"], info["coded_width"], info["coded_height"]) == (70, 50, 27, 19)
    assert Image.open(io.BytesIO(client.get(info["links"]["png"]).content)).size == (70, 50)
    plain = client.get(client.post("/blobs", content=blob_of(client)).headers["location"] + "/info").json()
    assert (plain["coded_width"], plain["coded_height"]) == (70, 50)
