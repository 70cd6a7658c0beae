"""Real processes on an S3 server: it goes down and comes back, and two of them want the same picture."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.bench.serving import Server, free_port, serving
from tests.conftest import make_picture, png, until
from tests.stores import moto

RENDERS, AWAITED, TAKEN = "sdc_batch_size_sum{op=render}", "sdc_lease_total{result=awaited}", "sdc_lease_total{result=taken}"
GONE = "sdc_requests_total{code=499,op=render}"


def settings_of(model: Path, environment: dict[str, str], **more: str) -> dict[str, str]:
    return {"SDC_MODEL": str(model), "SDC_CPU_WORKERS": "1", "SDC_STORE_URL": "s3://bucket/shop", **environment, **more}


def test_while_the_store_is_down(small_model: Path, tmp_path: Path) -> None:
    """What is kept is served, nothing is acknowledged that is not stored, and everything is as before when it is back."""
    port = free_port()
    with ExitStack() as up:
        store = up.enter_context(moto(port))
        # it has to ask about every id: what it remembers would hide that it cannot
        settings = settings_of(small_model, store.environment, SDC_STORE_TIMEOUT_S="2")
        with (
            serving(tmp_path, tmp_path / "log", "tests.forgetful", **settings) as server,
            httpx.Client(base_url=server.base, timeout=60) as client,
        ):
            made = client.post("/compress", content=png(make_picture(60, 80))).raise_for_status().json()
            webp = client.get(made["links"]["webp"]).raise_for_status()
            up.close()
            for _ in range(8):  # the last ones when the store is not even asked
                kept = client.get(made["links"]["webp"])
                assert (kept.status_code, kept.content) == (200, webp.content)
                refused = client.post("/compress", content=png(make_picture(60, 80, 1)))
                assert refused.status_code in (503, 504)
                assert refused.headers["content-type"] == "application/problem+json"
                assert int(refused.headers["retry-after"]) >= 1
            assert client.get(made["links"]["webp"], headers={"if-none-match": webp.headers["etag"]}).status_code == 304
            assert client.head(made["links"]["webp"]).status_code == 200
            assert client.get(f"{made['links']['webp']}?q=30").status_code == 503
            assert client.get("/readyz").status_code == client.get("/livez").status_code == 200
            samples = server.metrics()
            assert samples["sdc_store_open{access=read}"] == 1
            assert samples["sdc_inflight"] == 0
            with moto(port):  # empty: what was acknowledged is another's to keep
                until(lambda: client.post("/compress", content=png(make_picture(60, 80, 1))).status_code == 201)
                assert server.metrics()["sdc_store_open{access=read}"] == 0


def test_a_store_that_cannot_be_written_stops_the_start(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the store failed"):
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "x",
        }
        with serving(tmp_path, tmp_path / "log", **settings_of(small_model, environment, SDC_STORE_TIMEOUT_S="2")):
            pass


@pytest.fixture(scope="module")
def slow_replicas(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two that take long for a picture; the last test that uses them kills the first."""
    folder = tmp_path_factory.mktemp("replicas")
    with ExitStack() as stack:
        settings = settings_of(small_model, stack.enter_context(moto()).environment, SDC_LEASE_S="4")
        yield [stack.enter_context(serving(folder, folder / name, "tests.slow", **settings)) for name in ("one", "two")]


def posted(server: Server, seed: int) -> str:
    """Path of a new picture."""
    reply = httpx.post(f"{server.base}/compress", content=png(make_picture(60, 80, seed)), timeout=60)
    return str(reply.raise_for_status().json()["links"]["webp"])


def total(servers: list[Server], name: str) -> float:
    return sum(server.metrics().get(name, 0) for server in servers)


def test_each_waiter_has_its_own_deadline(slow_replicas: list[Server]) -> None:
    first, second = slow_replicas  # the second has made no picture yet: it would know that 300 ms are too few, and not wait
    link = posted(first, 4)
    before = first.metrics()[TAKEN]
    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(httpx.get, first.base + link, timeout=60)
        until(lambda: first.metrics()[TAKEN] > before)
        hasty = pool.submit(httpx.get, second.base + link, timeout=60, headers={"SDC-Deadline-Ms": "300"})
        assert hasty.result().status_code == 503
        assert hasty.result().json()["type"].endswith("deadline-missed")
        patient = httpx.get(second.base + link, timeout=60)
        assert (patient.status_code, patient.content) == (200, making.result().content)


def test_a_client_that_hangs_up_is_noticed_and_leaves_no_lease(slow_replicas: list[Server]) -> None:
    first, second = slow_replicas
    link = posted(first, 5)
    before = [first.metrics().get(name, 0) for name in (GONE, TAKEN)]
    with socket.create_connection(("127.0.0.1", first.port)) as client:
        client.sendall(f"GET {link} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        until(lambda: first.metrics()[TAKEN] > before[1])
    until(lambda: first.metrics().get(GONE, 0) == before[0] + 1)
    assert first.metrics()["sdc_inflight"] == 0
    expired = second.metrics().get("sdc_lease_total{result=expired}", 0)
    assert httpx.get(second.base + link, timeout=60).status_code == 200
    assert second.metrics().get("sdc_lease_total{result=expired}", 0) == expired


def test_a_hot_picture_is_made_once_by_all_replicas(slow_replicas: list[Server]) -> None:
    link = posted(slow_replicas[0], 2)
    before = [total(slow_replicas, name) for name in (RENDERS, AWAITED)]
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda n: httpx.get(slow_replicas[n % 2].base + link, timeout=60), range(12)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1
    assert [total(slow_replicas, name) for name in (RENDERS, AWAITED)] == [before[0] + 1, before[1] + 1]
    assert sum("collapsed" in reply.headers["cache-status"] for reply in replies) >= 6


def test_a_replica_that_dies_leaves_its_picture_to_the_other(slow_replicas: list[Server]) -> None:
    first, second = slow_replicas
    link = posted(first, 3)
    before = first.metrics()[TAKEN]
    with ThreadPoolExecutor(2) as pool:
        lost = pool.submit(httpx.get, first.base + link, timeout=60)
        until(lambda: first.metrics()[TAKEN] > before)
        waiting = pool.submit(httpx.get, second.base + link, timeout=60)
        until(lambda: second.metrics()["sdc_inflight{op=render}"] >= 1)
        first.process.kill()
        assert isinstance(lost.exception(), httpx.TransportError)
        assert waiting.result().status_code == 200
    assert second.metrics()["sdc_lease_total{result=expired}"] == 1
