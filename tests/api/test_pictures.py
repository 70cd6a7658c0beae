import asyncio
import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client import REGISTRY

from service.codec import container
from tests.conftest import make_picture, png, until

PHOTO = png(make_picture(60, 80))
NOISY_ALPHA = png(np.random.default_rng(0).integers(0, 256, (60, 80, 4)).astype(np.uint8))
"""its alpha alone is larger than any small promise"""


def device_batches() -> float:
    return sum(REGISTRY.get_sample_value("sdc_batch_size_count", {"op": op}) or 0 for op in ("encode", "render"))


def stored(client: TestClient) -> set[str]:
    root = Path(client.app.state.services.settings.store_url.removeprefix("file://"))  # type: ignore[attr-defined]
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_the_whole_journey(client: TestClient) -> None:
    reply = client.post("/compress?quality=70", content=PHOTO)
    assert reply.status_code == 201
    body = reply.json()
    assert reply.headers["location"] == f"/render/{body['id']}"
    assert set(body) == {"id", "bytes", "width", "height", "bpp", "method", "model", "preview", "color", "links"}
    assert (body["width"], body["height"], body["method"], body["model"]) == (80, 60, "latent", "small-residual-1")
    assert body["bpp"] == pytest.approx(8 * body["bytes"] / 4800, abs=1e-3)
    for name, kind in (("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG"), ("avif", "AVIF")):
        shown = client.get(body["links"].get(name, f"{body['links']['render']}.{name}"))
        assert shown.status_code == 200
        image = Image.open(io.BytesIO(shown.content))
        assert (image.format, image.size) == (kind, (80, 60))
    blob = client.get(body["links"]["blob"])
    assert len(blob.content) == body["bytes"]
    assert container.parse(blob.content, 1 << 20).width == 80
    info = client.get(body["links"]["info"]).json()
    assert info["source_bytes"] == len(PHOTO)
    assert info["sections"]["latent"] < body["bytes"]


def test_the_same_photo_again_costs_no_device_time(client: TestClient) -> None:
    first = client.post("/compress?quality=61", content=PHOTO)
    before = device_batches()
    again = client.post("/compress?quality=61&lane=bulk", content=PHOTO)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    preview = first.json()["preview"]
    assert len(preview) < 600
    assert Image.open(io.BytesIO(base64.b64decode(preview.removeprefix("data:image/webp;base64,")))).size == (24, 18)
    assert re.fullmatch("#[0-9a-f]{6}", first.json()["color"])
    assert device_batches() == before


def test_the_same_photo_from_many_at_once_is_stored_once(client: TestClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: client.post("/compress?quality=17", content=PHOTO), range(8)))
    assert sorted(reply.status_code for reply in replies) == [200] * 7 + [201]
    assert len({reply.text for reply in replies}) == 1


def slow(monkeypatch: pytest.MonkeyPatch, client: TestClient, journey: str, seconds: float) -> list[str]:
    """Make ``compress`` or ``render`` take so much longer; returns a list that grows with every run."""
    pipeline, runs = client.app.state.services.pipeline, []  # type: ignore[attr-defined]
    real = getattr(pipeline, journey)

    async def slowed(*args: object) -> object:
        runs.append(journey)
        made = await real(*args)
        await asyncio.sleep(seconds)
        return made

    monkeypatch.setattr(pipeline, journey, slowed)
    return runs


def test_identical_renders_at_once_cost_one_run(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    links = client.post("/compress?quality=33", content=PHOTO).json()["links"]
    runs = slow(monkeypatch, client, "render", 0.5)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(client.get, [links["webp"]] * 8 + [f"{links['webp']}?q=31"]))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies[:8]}) == 1
    assert replies[0].content != replies[8].content
    assert len(runs) == 2


@pytest.mark.parametrize("journey", ["compress", "render"])
def test_whoever_wants_the_same_waits_no_longer_than_his_own_deadline(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, journey: str
) -> None:
    path = "/compress?quality=36"
    if journey == "render":
        path = client.post(path, content=PHOTO).json()["links"]["png"]
    asked = {"method": "GET"} if journey == "render" else {"method": "POST", "content": PHOTO}
    monkeypatch.setattr(client.app.state.services.pipeline, "refuse_hopeless", lambda *_: None)  # type: ignore[attr-defined]
    runs = slow(monkeypatch, client, journey, 1.3)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(client.request, url=path, **asked)
        until(lambda: bool(runs))
        hasty = client.request(url=path, headers={"SDC-Deadline-Ms": "800"}, **asked)
        assert hasty.status_code == 503
        assert "somebody else" in hasty.json()["detail"]
        assert patient.result().is_success
    assert len(runs) == 1


def test_a_reply_that_comes_too_late_is_refused_and_what_was_made_is_kept(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = slow(monkeypatch, client, "compress", 2.5)
    late = client.post("/compress?quality=34", content=PHOTO, headers={"SDC-Deadline-Ms": "2000"})
    assert late.status_code == 503
    assert late.headers["retry-after"] == "1"
    assert "before the reply was ready" in late.json()["detail"]
    again = client.post("/compress?quality=34", content=PHOTO, headers={"SDC-Deadline-Ms": "1000"})
    assert again.status_code == 200
    assert len(runs) == 1
    slow(monkeypatch, client, "render", 1.5)
    assert client.get(again.json()["links"]["png"], headers={"SDC-Deadline-Ms": "1000"}).status_code == 503
    assert client.get(again.json()["links"]["png"]).status_code == 200


def test_what_cannot_be_in_time_is_refused_unread(client: TestClient) -> None:
    links = client.post("/compress?quality=35", content=PHOTO).json()["links"]
    for reply in (
        client.post("/compress?quality=35", content=b"no picture at all", headers={"SDC-Deadline-Ms": "1"}),
        client.post("/decompress", content=b"no blob at all", headers={"SDC-Deadline-Ms": "1"}),
        client.get(links["webp"], headers={"SDC-Deadline-Ms": "1"}),
    ):
        assert reply.status_code == 503
        assert "the deadline cannot be met" in reply.json()["detail"]
        assert reply.headers["retry-after"].isdecimal()


def test_a_form_and_a_raw_body_are_the_same(client: TestClient) -> None:
    raw = client.post("/compress?quality=33", content=PHOTO, headers={"content-type": "application/x-www-form-urlencoded"})
    form = client.post("/compress?quality=33", files={"file": ("x.jpg", PHOTO, "text/plain")})
    assert raw.json() == form.json()
    assert form.status_code == 200


def test_the_blob_itself_on_request(client: TestClient) -> None:
    reply = client.post("/compress?quality=20", content=PHOTO, headers={"accept": "application/vnd.sdc"})
    assert reply.status_code == 201
    assert reply.headers["content-type"] == "application/vnd.sdc"
    assert reply.content[:3] == b"SDC"
    assert client.get(f"/blobs/{reply.headers['sdc-id']}").content == reply.content


def test_max_bytes_is_kept(client: TestClient) -> None:
    reply = client.post("/compress?max_bytes=300", content=PHOTO, headers={"accept": "application/vnd.sdc"})
    assert reply.status_code == 201
    assert 200 < len(reply.content) <= 300


def test_decompress(client: TestClient) -> None:
    blob = client.post("/compress", content=PHOTO, headers={"accept": "application/vnd.sdc"}).content
    reply = client.post("/decompress?format=webp", content=blob)
    assert reply.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(reply.content)).size == (80, 60)
    assert client.post("/decompress", content=blob, headers={"accept": "image/jpeg"}).headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "image/png"),
        ("*/*", "image/png"),
        ("image/webp,image/png;q=0.5", "image/webp"),
        ("image/png;q=0.9, image/webp;q=0.8", "image/png"),
        ("image/webp;q=0, */*", "image/png"),
        ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "image/webp"),
        ("text/html", "image/png"),
        ("image/png;q=0", "image/jpeg"),
        ("image/*", "image/png"),
        ("image/webp;q=0.4, image/*;q=0.8", "image/png"),
        ("image/webp, */*", "image/webp"),
        ("image/*;q=0, image/avif", "image/avif"),
        ("image/png;q=0, image/jpeg;q=0, */*", "image/webp"),
        ("*/*;q=0", "image/png"),
        ("IMAGE/WEBP ; Q=1.000", "image/webp"),
        ("image/webp;q=2", "image/png"),
    ],
)
def test_negotiation(client: TestClient, accept: str | None, content_type: str) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"]
    headers = {"accept": accept} if accept else {}
    if not accept:
        client.headers.pop("accept", None)
    for method in ("GET", "HEAD"):
        reply = client.request(method, path, headers=headers)
        assert reply.headers["content-type"] == content_type
        assert reply.headers["vary"] == "Accept"
        assert reply.headers["content-location"].startswith(path + ".")


def test_head_and_304_do_not_touch_the_device(client: TestClient) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"] + ".webp"
    shown = client.get(path)
    before = device_batches()
    head = client.head(path)
    assert head.status_code == 200
    assert head.content == b""
    differ = {"server-timing", "content-length", "x-request-id", "cache-status"}
    assert {k: v for k, v in head.headers.items() if k not in differ} == {k: v for k, v in shown.headers.items() if k not in differ}
    tag = shown.headers["etag"]
    for condition in (tag, "*", f'"other", {tag}', tag.removeprefix("W/")):
        reply = client.get(path, headers={"if-none-match": condition})
        assert reply.status_code == 304
        assert reply.headers["etag"] == tag
        assert "immutable" in reply.headers["cache-control"]
    assert device_batches() == before
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_variants_have_their_own_tags(client: TestClient) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"]
    queries = (".png", ".webp", "?q=30", "?steps=0", "?w=20", "?h=20", "?w=20&h=20", "?w=20&h=20&fit=cover", "?w=20&h=20&fit=cover&q=30")
    urls = [path + (query if query.startswith(".") else f".webp{query}") for query in queries]
    replies = [client.head(url, follow_redirects=False) for url in urls]
    assert [reply.status_code for reply in replies] == [200] * len(urls)
    assert len({reply.headers["etag"] for reply in replies}) == len(urls)
    assert all(reply.headers["etag"].startswith('W/"') for reply in replies)


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ("?w=40", (40, 30)),
        ("?h=30", (40, 30)),
        ("?w=20&h=20&fit=cover", (20, 20)),
        ("?w=40&h=40&fit=contain", (40, 40)),
        ("?w=40&h=40&fit=fill", (40, 40)),
        ("?w=4000", (80, 60)),
    ],
)
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_sizes(client: TestClient, query: str, size: tuple[int, int], extension: str) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"]
    shown = client.get(f"{path}.{extension}{query}", follow_redirects=False)
    assert shown.status_code == 200
    assert Image.open(io.BytesIO(shown.content)).size == size


@pytest.mark.parametrize(
    ("asked", "canonical"),
    [
        (".webp?h=20&w=30", ".webp?w=30&h=20"),
        (".webp?q=80", ".webp"),
        (".webp?q=050", ".webp?q=50"),
        (".webp?w=20&fit=inside", ".webp?w=20"),
        (".webp?w=20&dpr=2", ".webp?w=40"),
        (".webp?w=333&dpr=1.5", ".webp?w=500"),
        (".png?q=30", ".png"),
        (".webp?%77=30", ".webp?w=30"),
        (".webp?w=3%30", ".webp?w=30"),
        (".webp?w=30&", ".webp?w=30"),
        ("?format=webp&w=30", ".webp?w=30"),
        (".png?format=webp", ".webp"),
        ("?steps=1", ""),
        ("?q=30", None),
        (".webp?w=30&h=20&fit=cover&q=30&steps=0", None),
    ],
)
def test_every_variant_has_one_spelling(client: TestClient, asked: str, canonical: str | None) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"]
    for method in ("GET", "HEAD"):
        reply = client.request(method, path + asked, follow_redirects=False)
        if canonical is None:
            assert reply.status_code == 200
        else:
            assert (reply.status_code, reply.headers["location"]) == (308, path + canonical)
            assert client.request(method, reply.headers["location"], follow_redirects=False).status_code == 200


def test_a_negotiated_variant_says_where_it_stands(client: TestClient) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"]
    shown = client.get(f"{path}?w=20&q=30", headers={"accept": "image/webp"})
    assert shown.headers["content-location"] == f"{path}.webp?w=20&q=30"
    assert client.head(shown.headers["content-location"]).headers["etag"] == shown.headers["etag"]
    shown = client.get(f"{path}?w=20&q=30", headers={"accept": "image/png"})
    assert shown.headers["content-location"] == f"{path}.png?w=20"
    assert client.head(shown.headers["content-location"], follow_redirects=False).headers["etag"] == shown.headers["etag"]


@pytest.mark.parametrize(
    "query", ["w=0", "w=4097", "w=-1", "w=1e2", "w=", "fit=crop", "fit=cover", "fit=cover&w=20", "dpr=2", "dpr=5&w=5", "dpr=2.&w=5",
              "w=4000&dpr=2", "preset=none", "q=0", "steps=9", "width=20", "w=20&w=20"],
)  # fmt: skip
def test_variants_that_cannot_be(client: TestClient, query: str) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"]
    reply = client.get(f"{path}.webp?{query}", follow_redirects=False)
    assert (reply.status_code, reply.headers["cache-control"]) == (400, "no-store")
    assert "vary" not in reply.headers


@pytest.mark.parametrize("suffix", ["", "?q=80", "?q=800", "?w=20"])
def test_every_reply_of_a_negotiated_address_varies(client: TestClient, suffix: str) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"]
    tag = client.head(path).headers["etag"]
    for url in (path + suffix, f"/render/{'a' * 26}{suffix}"):
        for headers in ({}, {"if-none-match": tag}):
            assert client.get(url, headers=headers, follow_redirects=False).headers["vary"] == "Accept"
    assert "vary" not in client.get(f"{path}.webp").headers


GIF = io.BytesIO()
Image.fromarray(make_picture(9, 9)).save(GIF, "GIF", save_all=True, append_images=[Image.fromarray(make_picture(9, 9, 1))])


@pytest.mark.parametrize(
    ("query", "body", "status", "kind"),
    [
        ("", b"this is no picture", 415, "unsupported-input"),
        ("", b"", 400, "bad-parameter"),
        ("", PHOTO[: len(PHOTO) // 2], 422, "undecodable-picture"),
        ("", GIF.getvalue(), 422, "animated-picture"),
        ("", png(np.zeros((1000, 1000, 3), np.uint8)), 422, "too-many-pixels"),
        ("", bytes(2_000_001), 413, "too-many-bytes"),
        ("?max_bytes=1000", NOISY_ALPHA, 422, "size-unreachable"),
        ("?surprise=1", PHOTO, 400, "bad-parameter"),
        ("?quality=101", PHOTO, 400, "bad-parameter"),
        ("?quality=ten", PHOTO, 400, "bad-parameter"),
        ("?quality=1_0", PHOTO, 400, "bad-parameter"),
        ("?quality=1.0", PHOTO, 400, "bad-parameter"),
        ("?quality=", PHOTO, 400, "bad-parameter"),
        ("?quality=5&quality=6", PHOTO, 400, "bad-parameter"),
        ("", png(np.zeros((1, 70_000, 3), np.uint8)), 422, "too-many-pixels"),
        ("?quality=5&max_bytes=5000", PHOTO, 400, "bad-parameter"),
        ("?method=jpeg", PHOTO, 400, "bad-parameter"),
        ("?method=palette&quality=5", PHOTO, 400, "bad-parameter"),
        ("?method=palette&dither=1", PHOTO, 400, "bad-parameter"),
        ("?method=palette&max_bytes=99", PHOTO, 422, "size-unreachable"),
        ("?dither=yes", PHOTO, 400, "bad-parameter"),
        ("?lane=fast", PHOTO, 400, "bad-parameter"),
    ],
)
def test_bad_input(client: TestClient, query: str, body: bytes, status: int, kind: str) -> None:
    before = stored(client)
    reply = client.post(f"/compress{query}", content=body)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    problem = reply.json()
    assert problem["type"] == f"urn:sdc:problem:{kind}"
    assert problem["status"] == status
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert "Traceback" not in reply.text
    assert "/" not in problem["detail"].replace("application/vnd.sdc", "")
    assert stored(client) == before


def test_an_unreachable_size_says_the_best(client: TestClient) -> None:
    best = client.post("/compress?max_bytes=1000", content=NOISY_ALPHA).json()["best_bytes"]
    assert client.post(f"/compress?max_bytes={best}", content=NOISY_ALPHA).json()["bytes"] == best


def test_a_chunked_body_over_the_limit(client: TestClient) -> None:
    sent = 0

    def chunks() -> object:
        nonlocal sent
        for _ in range(400):
            sent += 100_000
            yield bytes(100_000)

    reply = client.post("/compress", content=chunks())  # type: ignore[arg-type]
    assert reply.status_code == 413
    assert reply.json()["type"].endswith("too-many-bytes")


@pytest.mark.parametrize(
    "files", [[("picture", ("x", PHOTO))], [("file", ("x", PHOTO)), ("file", ("y", PHOTO))], [("file", ("x", PHOTO))] * 5]
)
def test_a_form_that_is_not_one_file(client: TestClient, files: list[tuple[str, tuple[str, bytes]]]) -> None:
    reply = client.post("/compress", files=files)
    assert (reply.status_code, reply.json()["type"]) == (400, "urn:sdc:problem:bad-parameter")


def test_options_do_not_go_into_the_form(client: TestClient) -> None:
    reply = client.post("/compress", files={"file": ("x", PHOTO)}, data={"max_bytes": "3000"})
    assert (reply.status_code, reply.json()["type"]) == (400, "urn:sdc:problem:bad-parameter")
    assert "/compress?max_bytes=3000" in reply.json()["detail"]


def test_what_curl_leaves_out_of_a_photo(client: TestClient) -> None:
    """``curl -d`` takes line ends out and calls the rest a form; so does ``--data-binary``, but for the line ends."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/compress", content=PHOTO, headers=form).status_code in (200, 201)
    spoilt = PHOTO.replace(b"\r", b"").replace(b"\n", b"")
    assert "--data-binary" in client.post("/compress", content=spoilt, headers=form).json()["detail"]
    assert "curl" not in client.post("/compress", content=spoilt).json()["detail"]


@pytest.mark.parametrize("query", ["tag=a b", "tag=-a", f"tag={'a' * 65}"])
def test_a_tag_that_cannot_be(client: TestClient, query: str) -> None:
    reply = client.post(f"/compress?{query}", content=PHOTO)
    assert reply.status_code == 400
    assert "begins with a letter or digit" in reply.json()["detail"]


def test_large_photos_wait_in_the_other_lane_and_whoever_says_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def waited() -> dict[str, float]:
        labels = [{"op": "encode", "lane": lane} for lane in ("interactive", "bulk")]
        return {each["lane"]: REGISTRY.get_sample_value("sdc_queue_wait_seconds_count", each) or 0.0 for each in labels}

    monkeypatch.setattr("service.pipeline.SMALL_PIXELS", 4000)
    own = [("", 40, "interactive"), ("", 41, "bulk")]
    for query, height, lane in [*own, ("?lane=bulk", 39, "bulk"), ("?lane=interactive", 42, "interactive")]:
        before = waited()
        assert client.post(f"/compress{query}", content=png(np.full((height, 100, 3), 9, np.uint8))).status_code == 201
        grown = {each for each, count in waited().items() if count > before[each]}
        assert grown == {lane}


def test_the_way_to_the_one_address_is_kept_for_a_day(client: TestClient) -> None:
    path = client.post("/compress", content=PHOTO).headers["location"]
    moved = client.get(f"{path}.webp?q=80", follow_redirects=False)
    assert (moved.status_code, moved.headers["cache-control"]) == (308, "public, max-age=86400")


@pytest.mark.parametrize("charset", ["undefined", "no-such", "utf-16"])
def test_a_form_in_a_strange_charset(client: TestClient, charset: str) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    reply = client.post("/compress", content=form, headers={"content-type": f"multipart/form-data; boundary=x; charset={charset}"})
    assert (reply.status_code, reply.headers["content-type"]) == (400 if charset != "no-such" else 415, "application/problem+json")


def test_a_side_that_a_format_cannot_hold(client: TestClient) -> None:
    path = client.post("/compress", content=png(np.zeros((1, 65_535, 3), np.uint8))).headers["location"]
    assert client.get(f"{path}.png").status_code == 200
    for extension in ("webp", "jpg"):
        assert client.get(f"{path}.{extension}").status_code == 400


@pytest.mark.parametrize("path", ["/compress", "/render/" + "a" * 26, "/blobs/" + "a" * 26, "/decompress"])
@pytest.mark.parametrize("name", ["x", "query", "expires2"])
def test_unknown_parameters_are_refused_everywhere(client: TestClient, path: str, name: str) -> None:
    reply = client.request("POST" if "press" in path else "GET", f"{path}?{name}=3", content=b"x")
    assert (reply.status_code, reply.json()["detail"]) == (400, f"unknown parameter '{name}'")


@pytest.mark.parametrize("body", [b"hello", b"SDC\x01damaged", b"SDC\x07" + bytes(30)])
def test_decompress_refuses_what_is_no_blob(client: TestClient, body: bytes) -> None:
    reply = client.post("/decompress", content=body)
    assert reply.status_code in (415, 422)
    assert json.loads(reply.content)["detail"]


def test_a_picture_is_rendered_once(client: TestClient) -> None:
    path = client.post("/compress?quality=33", content=PHOTO).headers["location"] + ".webp?w=30"
    assert "content-length" not in client.head(path).headers
    first = client.get(path)
    assert first.headers["cache-status"] == "sdc; fwd=uri-miss"
    until(lambda: "content-length" in client.head(path).headers)
    before = device_batches()
    again = client.get(path)
    assert again.headers["cache-status"] == "sdc; hit"
    assert again.content == first.content
    assert device_batches() == before
    head = client.head(path)
    assert int(head.headers["content-length"]) == len(first.content)
    differ = {"server-timing", "x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in differ} == {k: v for k, v in again.headers.items() if k not in differ}


def test_deleting_drops_the_renders(client: TestClient) -> None:
    path = client.post("/compress?quality=34", content=PHOTO).headers["location"]
    first = client.get(f"{path}.webp")
    until(lambda: any(name.startswith("renders/" + path.removeprefix("/render/")) for name in stored(client)))
    assert client.delete(path.replace("render", "blobs"), headers={"authorization": "Bearer open, sesame, open"}).status_code == 204
    assert not any(name.startswith("renders/" + path.removeprefix("/render/")) for name in stored(client))
    for headers in ({}, {"if-none-match": first.headers["etag"]}, {"if-none-match": "*"}):
        for method in ("GET", "HEAD"):
            reply = client.request(method, f"{path}.webp", headers=headers)
            assert (reply.status_code, reply.headers["cache-control"]) == (410, "public, max-age=10")
    assert client.post("/compress?quality=34", content=PHOTO).status_code == 201
    assert client.get(f"{path}.webp").content == first.content


def test_a_blob_deleted_while_it_is_rendered_leaves_no_render(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = client.post("/compress?quality=35", content=PHOTO).headers["location"]
    services = client.app.state.services  # type: ignore[attr-defined]
    real = services.pipeline.render

    async def deleted_meanwhile(*args: object) -> object:
        rendered = await real(*args)
        await services.blobs.delete(path.removeprefix("/render/"))
        return rendered

    monkeypatch.setattr(services.pipeline, "render", deleted_meanwhile)
    client.get(f"{path}.webp")
    assert client.get(f"{path}.webp").status_code == 410
    assert not any(name.startswith("renders/" + path.removeprefix("/render/")) for name in stored(client))


@pytest.mark.parametrize(
    "name", ["a%0d%0aSet-Cookie:%20x=1", "%C3%A9", "%E2%82%AC", "A" * 26, "a" * 25 + "%61", "..%2f" + "a" * 23, "a" * 10_000]
)
def test_an_id_that_is_none_goes_into_no_header(client: TestClient, name: str) -> None:
    for suffix in ("", ".webp", "?q=80", ".webp?w=020"):
        reply = client.get(f"/render/{name}{suffix}", follow_redirects=False)
        if name.endswith("%61"):
            assert reply.status_code in (308, 404)  # it is one, in another spelling
            assert reply.headers.get("location", f"/render/{'a' * 26}").startswith(f"/render/{'a' * 26}")
        else:
            assert reply.status_code == 404
            assert "set-cookie" not in reply.headers
