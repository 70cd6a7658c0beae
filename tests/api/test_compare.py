"""POST /compare, and the files of the page that shows it."""

import asyncio
import base64
import io
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.api import compare, page
from service.api.compare import Comparisons
from service.app import create_app
from service.bench.serving import serving
from service.comparison import contest
from service.comparison.metrics import Plane, measure
from service.comparison.rivals import RIVALS, at_least
from service.errors import Overloaded, QuotaExceeded
from service.settings import Settings
from tests.conftest import make_picture, png, psnr, until

PIXELS = make_picture(170, 230, 7)
PHOTO = png(PIXELS)
CODECS = ("sdc", "JPEG", "WebP", "AVIF")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def client(small_model: Path, store: Path) -> Iterator[TestClient]:
    settings = Settings(
        model=small_model, store_url=f"file://{store}", dtype="float32", compare_max_pixels=60_000, compare_per_minute=10_000
    )  # fmt: skip
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def content_of(data_uri: str) -> bytes:
    return base64.b64decode(data_uri.partition(";base64,")[2])


def pixels_of(content: bytes) -> Plane:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture(scope="module")
def compared(client: TestClient) -> dict[str, Any]:
    reply = client.post("/compare?quality=20", content=PHOTO)
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-store"), reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_the_file_is_that_of_compress_and_nothing_is_stored(client: TestClient, store: Path, compared: dict[str, Any]) -> None:
    assert not list(store.rglob("*.sdc*")) and not [path for path in (store / "blobs").rglob("*") if path.is_file()]
    blob = client.post("/compress?quality=20", content=PHOTO, headers={"accept": "application/vnd.sdc"})
    assert blob.status_code == 201  # not known yet
    ours = compared["codecs"]["sdc"]
    assert content_of(ours["file"]) == blob.content
    assert ours["bytes"] == len(blob.content)
    render = client.post("/decompress?format=png", content=blob.content).content
    assert psnr(pixels_of(content_of(ours["picture"])), pixels_of(render)) > 50


def test_each_rival_is_the_one_of_the_rule(compared: dict[str, Any]) -> None:
    assert tuple(compared["codecs"]) == CODECS
    size = compared["codecs"]["sdc"]["bytes"]
    for name in RIVALS:
        entry = compared["codecs"][name]
        content, shown = at_least(RIVALS[name], PIXELS, size)
        assert content_of(entry["file"]) == content
        assert (entry["bytes"], entry["picture"]) == (len(content), None)
        assert entry["smallest"] == (entry["quality"] == 0)
        assert entry["figures"] == pytest.approx(asdict(measure(PIXELS, shown)))


def test_what_else_is_told(compared: dict[str, Any]) -> None:
    assert (compared["width"], compared["height"], compared["model"], compared["notes"]) == (230, 170, "small-residual-1", [])
    assert list(compared["stages"]["compress"]) == ["header", "open", "queue", "encode", "code"]
    assert list(compared["stages"]["render"]) == ["read", "queue", "unet", "decode", "write"]
    assert compared["preview"].startswith("data:image/webp") and compared["color"].startswith("#")
    ours = compared["codecs"]["sdc"]
    assert ours["encode_ms"] == pytest.approx(sum(compared["stages"]["compress"].values()), abs=0.5)
    assert all(entry["encode_ms"] > 0 and entry["decode_ms"] > 0 for entry in compared["codecs"].values())


def test_a_rival_that_cannot_be_as_small_is_told(client: TestClient) -> None:
    flat = np.full((170, 230, 3), 90, np.uint8)
    codecs = client.post("/compare?quality=0", content=png(flat)).json()["codecs"]
    for name in RIVALS:
        fits = codecs[name]["bytes"] <= codecs["sdc"]["bytes"]
        assert codecs[name]["smallest"] == (codecs[name]["quality"] == 0 and not fits)
    assert any(codecs[name]["smallest"] for name in RIVALS)


def test_a_transparent_picture_is_compared_on_white(client: TestClient) -> None:
    alpha = np.zeros(PIXELS.shape[:2], np.uint8)
    alpha[:, :115] = 255
    out = io.BytesIO()
    Image.fromarray(np.dstack([PIXELS, alpha])).save(out, "PNG")
    codecs = client.post("/compare?quality=20", content=out.getvalue()).json()["codecs"]
    assert (pixels_of(content_of(codecs["JPEG"]["file"]))[:, 140:] > 220).all()
    assert Image.open(io.BytesIO(content_of(codecs["sdc"]["picture"]))).mode == "RGBA"
    white = PIXELS.copy()
    white[:, 115:] = 255
    shown = pixels_of(content_of(codecs["AVIF"]["file"]))
    assert codecs["AVIF"]["figures"]["psnr"] == pytest.approx(measure(white, shown).psnr)


def test_a_small_picture_has_psnr_alone(client: TestClient) -> None:
    reply = client.post("/compare?quality=20", content=png(make_picture(40, 300))).json()
    figures = reply["codecs"]["WebP"]["figures"]
    assert figures["psnr"] > 0 and {figures[name] for name in ("ms_ssim", "ssimulacra2", "feature")} == {None}
    assert "161 pixels" in reply["notes"][0]


def test_what_is_not_installed_is_told(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "unavailable", lambda: frozenset({"ssimulacra2", "feature"}))
    monkeypatch.setattr(contest, "JPEG_AT_ITS_BEST", False)
    reply = client.post("/compare?quality=20", content=PHOTO).json()
    figures = reply["codecs"]["sdc"]["figures"]
    assert figures["ms_ssim"] is not None and figures["ssimulacra2"] is figures["feature"] is None
    assert len(reply["notes"]) == 2
    assert "SSIMULACRA2, feature distance" in reply["notes"][0] and all("pip install 'sdc[page]'" in note for note in reply["notes"])


def test_without_mozjpeg_jpeg_is_larger_and_still_a_jpeg() -> None:
    picture = Image.fromarray(PIXELS)
    plain, best = contest.plain_jpeg(picture, 60), RIVALS["JPEG"](picture, 60)
    assert len(plain) > len(best)
    assert (pixels_of(plain) == pixels_of(best)).all()


@pytest.mark.parametrize(
    ("query", "body", "status", "kind"),
    [
        ("?max_bytes=900&quality=3", PHOTO, 400, "bad-parameter"),
        ("?max_bytes=9e3", PHOTO, 400, "bad-parameter"),
        ("?max_bytes=900&max_bytes=901", PHOTO, 400, "bad-parameter"),
        ("?tag=a", PHOTO, 400, "bad-parameter"),
        ("?quality=101", PHOTO, 400, "bad-parameter"),
        ("", b"", 400, "bad-parameter"),
        ("", b"no picture", 415, "unsupported-input"),
        ("", PHOTO[:-30], 422, "undecodable-picture"),
        ("", png(make_picture(300, 201)), 422, "too-many-pixels"),
        ("?max_bytes=33", PHOTO, 422, "size-unreachable"),
    ],
)
def test_what_cannot_be_compared(client: TestClient, query: str, body: bytes, status: int, kind: str) -> None:
    reply = client.post(f"/compare{query}", content=body)
    problem = reply.json()
    assert (reply.status_code, problem["type"]) == (status, f"urn:sdc:problem:{kind}"), reply.text
    assert problem.get("max_pixels") == (60_000 if kind == "too-many-pixels" else None)
    assert ("best_bytes" in problem) == (kind == "size-unreachable")


def test_a_deadline_that_cannot_be_met(client: TestClient) -> None:
    reply = client.post("/compare", content=PHOTO, headers={"SDC-Deadline-Ms": "1"})
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
    assert client.post("/compare?quality=20", content=PHOTO).status_code == 200


def test_the_form_does_too(client: TestClient) -> None:
    assert client.post("/compare?quality=20", files={"file": ("a.png", PHOTO)}).status_code == 200


def test_a_full_house_is_503_before_the_body_is_read(client: TestClient) -> None:
    comparisons: Comparisons = client.app.state.comparisons  # type: ignore[attr-defined]

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(1 << 16)

    with comparisons.one(), comparisons.one():
        reply = client.post("/compare", content=endless())
        assert (reply.status_code, reply.json()["type"]) == (503, "urn:sdc:problem:overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        assert client.post("/compress?quality=20", content=PHOTO).status_code in (200, 201)
    assert client.post("/compare?quality=20", content=PHOTO).status_code == 200


def test_a_place_is_given_back_whatever_happens(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(contest, "enter", broken)
        assert [client.post("/compare?quality=20", content=PHOTO).status_code for _ in range(3)] == [500] * 3
    assert client.post("/compare?quality=20", content=PHOTO).status_code == 200


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_address_has_its_own_quota() -> None:
    clock = Clock()
    comparisons = Comparisons(1, 3, clock)
    for _ in range(3):
        comparisons.count("192.0.2.1")
    with pytest.raises(QuotaExceeded) as refused:
        comparisons.count("192.0.2.1")
    assert refused.value.retry_after_s == pytest.approx(20)
    comparisons.count("192.0.2.2")
    with pytest.raises(QuotaExceeded):
        comparisons.count("::ffff:192.0.2.1")  # the same, over IPv6
    clock.now = 20.1
    comparisons.count("192.0.2.1")
    with pytest.raises(QuotaExceeded):
        comparisons.count("192.0.2.1")


def test_a_network_of_ipv6_is_one_address() -> None:
    comparisons = Comparisons(1, 2, Clock())
    comparisons.count("2001:db8::1")
    comparisons.count("2001:db8::ffff")
    with pytest.raises(QuotaExceeded):
        comparisons.count("2001:db8:0:0:aaaa::1")
    comparisons.count("2001:db8:0:1::1")
    comparisons.count("somewhere")  # a socket's path


def test_addresses_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "MOST_ADDRESSES", 5)
    comparisons = Comparisons(1, 1, Clock())
    for number in range(50):
        comparisons.count(f"192.0.2.{number}")
    assert len(comparisons._quotas) == 5
    with pytest.raises(QuotaExceeded):
        comparisons.count("192.0.2.49")


def test_places() -> None:
    comparisons = Comparisons(2, 1)
    with comparisons.one(), comparisons.one(), pytest.raises(Overloaded):
        comparisons.require_room()
    with pytest.raises(ValueError), comparisons.one():
        raise ValueError
    comparisons.require_room()


def test_429_over_http_and_keys_first(small_model: Path) -> None:
    secret = "a secret of some length"
    keys: Any = {"shop": {"secret": secret, "scopes": ["compress"]}, "page": {"secret": f"{secret}!", "scopes": ["render"]}}
    settings = Settings(model=small_model, store_url="memory:///", dtype="float32", api_keys=keys, compare_per_minute=2)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        for _ in range(5):
            assert client.post("/compare", content=PHOTO).status_code == 401  # and does not count
        assert client.post("/compare", content=PHOTO, headers={"authorization": f"Bearer {secret}!"}).status_code == 403
        shop = {"authorization": f"Bearer {secret}"}
        replies = [client.post("/compare?quality=20", content=PHOTO, headers=shop) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert 1 <= int(replies[2].headers["retry-after"]) <= 30
        assert (replies[2].json()["type"], replies[2].headers["cache-control"]) == ("urn:sdc:problem:quota-exceeded", "no-store")


def test_whoever_leaves_is_worked_for_no_longer() -> None:
    """After the step in hand nothing more is done."""
    steps = 0

    async def scenario() -> None:
        held = asyncio.Event()

        async def run(call: Callable[[], Any]) -> Any:
            nonlocal steps
            steps += 1
            if steps == 3:
                await held.wait()
            return call()

        task = asyncio.create_task(contest.enter("WebP", PIXELS, 2000, run))
        while steps < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.set()
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert steps == 3


def test_a_real_client_that_hangs_up_gives_its_place_back(small_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tmp_path / "log", SDC_MODEL=str(small_model), SDC_COMPARE_AT_ONCE="1") as server:
        photo = png(make_picture(1000, 1000))
        head = f"POST /compare?quality=20 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + photo)
            until(lambda: server.metrics().get("sdc_stage_seconds_count{stage=write}", 0) >= 1)  # the rivals are next
        until(lambda: server.metrics().get("sdc_requests_total{code=499,op=compare}", 0) == 1)
        assert server.metrics()["sdc_inflight{op=compare}"] == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert not [line for line in lines if line.get("level") in ("error", "critical")]


# -- the page


def test_the_page_and_its_files(client: TestClient) -> None:
    home = client.get("/")
    assert home.status_code == 200 and home.headers["content-type"] == "text/html; charset=utf-8"
    policy = home.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    names = {str(path.relative_to(page.FOLDER)) for path in page.FOLDER.rglob("*") if path.is_file()} - {"index.html"}
    for name in names:
        reply = client.get(f"/page/{name}")
        assert reply.status_code == 200 and reply.content == (page.FOLDER / name).read_bytes(), name
        assert reply.headers["x-content-type-options"] == "nosniff"
        again = client.get(f"/page/{name}", headers={"if-none-match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    head = client.head("/")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(home.content)))


@pytest.mark.parametrize("path", ["/page/", "/page/none.js", "/page/..%2fsettings.py", "/page/%2e%2e/settings.py", "/index.html"])
def test_there_are_no_other_files(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")


def test_the_page_speaks_to_nobody_else() -> None:
    for path in page.FOLDER.rglob("*"):
        if path.suffix in (".html", ".css", ".js"):
            assert "http://" not in path.read_text() and "https://" not in path.read_text(), path


def test_the_script_stays_small() -> None:
    assert sum(len(path.read_text().splitlines()) for path in page.FOLDER.glob("*.js")) < 600


@pytest.mark.parametrize("name", ["chelsea", "coffee", "astronaut", "rocket"])
def test_a_sample_is_the_photograph_that_may_be_shipped(name: str) -> None:
    import skimage.data

    sample = page.FOLDER / "samples" / f"{name}.jpg"
    assert sample.stat().st_size < 100_000
    assert psnr(pixels_of(sample.read_bytes()), getattr(skimage.data, name)()) > 33
    assert f"{name}.jpg" in (page.FOLDER / "samples" / "LICENCES.txt").read_text()


def test_off_by_one_setting(small_model: Path) -> None:
    settings = Settings(model=small_model, store_url="memory:///", dtype="float32", page=False)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        for reply in (client.get("/"), client.get("/page/page.js"), client.post("/compare", content=PHOTO)):
            assert (reply.status_code, reply.json()["type"]) == (404, "urn:sdc:problem:not-found")
        assert "/compare" not in client.get("/openapi.json").json()["paths"]
