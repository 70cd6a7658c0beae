"""Debian's nginx as the CDN in front, with the configuration in deploy/."""

import base64
import hmac
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.bench.serving import Server, free_port, serving
from tests.conftest import make_picture, png, until
from tests.system.nginx import nginx

pytestmark = pytest.mark.system
WEBP = {"accept": "image/avif;q=0.5,image/webp,*/*;q=0.8"}
OLD = {"accept": "*/*"}


SIGNING_KEY = "a signing key of some length"


@dataclass
class Cdn:
    origin: Server
    client: httpx.Client
    fresh_for_a_second: bool

    def picture(self, seed: int) -> str:
        """Path of a new picture."""
        reply = self.client.post("/compress?max_bytes=2000", content=png(make_picture(96, 128, seed))).raise_for_status()
        return str(reply.json()["links"]["render"])

    def renders(self) -> float:
        return self.origin.metrics().get("sdc_batch_size_sum{op=render}", 0.0)


@pytest.fixture(params=["as it is", "fresh for a second"], scope="module")
def cdn(request: pytest.FixtureRequest, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cdn]:
    folder = tmp_path_factory.mktemp("nginx")
    # a picture that must be confirmed shall not be confirmed from memory, or a full origin would not be seen to be full
    program = "service.cli" if request.param == "as it is" else "tests.forgetful"
    changes = {}
    if request.param != "as it is":
        changes["proxy_cache_lock on;"] = "proxy_cache_lock on; proxy_ignore_headers Cache-Control; proxy_cache_valid 200 1s;"
    with in_front(folder, program, small_model, changes, SDC_SLOTS="4", SDC_RENDER_CACHE_BYTES="0") as (origin, client):
        yield Cdn(origin, client, request.param != "as it is")


@contextmanager
def in_front(folder: Path, program: str, model: Path, changes: dict[str, str], **settings: str) -> Iterator[tuple[Server, httpx.Client]]:
    """A service and a client of the nginx in front of it."""
    port = free_port()
    with serving(folder, folder / "log", program, SDC_MODEL=str(model), **settings) as origin:
        changes = {
            "server sdc:8080": f"server 127.0.0.1:{origin.port}",
            "listen 8081": f"listen 127.0.0.1:{port}",
            "/var/cache/nginx/sdc": f"{folder}/cache",
            **changes,
        }
        with nginx("nginx.conf", folder, port, changes), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield origin, client


def test_a_picture_is_fetched_once(cdn: Cdn) -> None:
    path = cdn.picture(1) + ".webp"
    first, second = cdn.client.get(path), cdn.client.get(path)
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
    assert first.content == second.content
    assert second.headers["etag"] == first.headers["etag"]


def test_metrics_are_not_for_everybody(cdn: Cdn) -> None:
    assert "sdc_requests_total" in httpx.get(f"{cdn.origin.base}/metrics").text
    assert cdn.client.get("/metrics").status_code == 404
    assert cdn.client.get("/livez").status_code == 200


def test_a_head_becomes_a_get(cdn: Cdn) -> None:
    """As the configuration and the handbook say."""
    path, before = cdn.picture(8) + ".webp", cdn.renders()
    seen = [cdn.client.request(method, path).headers["x-cache"] for method in ("HEAD", "GET")]
    assert seen == ["MISS", "HIT"]
    assert cdn.renders() == before + 1


def test_many_who_want_the_same_new_picture_are_one_request(cdn: Cdn) -> None:
    path, before = cdn.picture(2) + ".webp", cdn.renders()
    with ThreadPoolExecutor(10) as pool:
        replies = list(pool.map(lambda _: cdn.client.get(path), range(10)))
    assert {reply.status_code for reply in replies} == {200}
    assert cdn.renders() == before + 1


def test_vary_keeps_clients_apart(cdn: Cdn) -> None:
    path = cdn.picture(3)
    seen = [(cdn.client.get(path, headers=headers).headers) for headers in (WEBP, OLD, WEBP, OLD)]
    assert [each["content-type"] for each in seen] == ["image/webp", "image/png"] * 2
    assert [each["x-cache"] for each in seen] == ["MISS", "MISS", "HIT", "HIT"]


def test_errors_are_not_kept(cdn: Cdn) -> None:
    for _ in range(2):
        reply = cdn.client.get(cdn.picture(4) + ".webp?w=0")
        assert (reply.status_code, reply.headers["x-cache"]) == (400, "MISS")


@pytest.mark.parametrize("cdn", ["fresh for a second"], indirect=True)  # what is fresh for a year need not be confirmed
def test_a_stale_picture_is_confirmed_without_a_render(cdn: Cdn) -> None:
    path = cdn.picture(5) + ".webp"
    first, before = cdn.client.get(path), cdn.renders()
    time.sleep(2.1)
    reply = cdn.client.get(path)
    assert (reply.status_code, reply.content, reply.headers["x-cache"]) == (200, first.content, "REVALIDATED")
    assert cdn.renders() == before
    assert re.search(r'"status": 304', cdn.origin.log.read_text())  # type: ignore[union-attr]


def test_a_stale_picture_is_served_while_the_origin_is_full(cdn: Cdn) -> None:
    path = cdn.picture(6) + ".webp"
    first = cdn.client.get(path)
    unseen = cdn.picture(7) + ".webp"
    if cdn.fresh_for_a_second:
        time.sleep(2.1)
    slow = [socket.create_connection(("127.0.0.1", cdn.origin.port)) for _ in range(4)]
    try:
        for connection in slow:
            connection.sendall(b"POST /compress HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        until(lambda: cdn.origin.metrics()["sdc_inflight{op=compress}"] >= 4)
        refused = cdn.client.get(unseen)
        assert (refused.status_code, refused.headers["cache-control"]) == (503, "no-store")
        assert int(refused.headers["retry-after"]) >= 1
        for _ in range(3):
            reply = cdn.client.get(path)
            assert (reply.status_code, reply.content) == (200, first.content)
            assert reply.headers["x-cache"] == ("STALE" if cdn.fresh_for_a_second else "HIT")
    finally:
        for connection in slow:
            connection.close()


def test_a_signature_runs_out_behind_a_cache_too(small_model: Path, tmp_path: Path) -> None:
    keys = {"k1": SIGNING_KEY}
    with in_front(tmp_path, "service.cli", small_model, {}, SDC_SIGNING_KEYS=json.dumps(keys)) as (_, client):
        made = client.post("/compress?max_bytes=2000", content=png(make_picture(96, 128, 9))).raise_for_status().json()
        signed = f"/render/{made['id']}.webp?expires={int(time.time()) + 4}&key=k1"
        digest = hmac.digest(SIGNING_KEY.encode(), signed.encode(), "sha256")
        path = f"{signed}&sig={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
        assert client.get(path).status_code == 200
        time.sleep(5)
        for _ in range(3):
            reply = client.get(path)
            assert (reply.status_code, reply.headers["cache-control"]) == (403, "no-store")


def test_the_address_that_is_counted_is_the_proxys(cdn: Cdn) -> None:
    """Whoever could say another with each request would be counted by none."""
    said = [{"x-forwarded-for": f"192.0.2.{index}"} for index in range(21)]
    seen = [cdn.client.post("/compare", content=b"no picture", headers=headers).status_code for headers in said]
    assert seen == [415] * 20 + [429]
