"""Two processes on one store are one service: what one made the other shows, with the same ids, entity tags and headers."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.bench.serving import serving
from tests.conftest import make_picture, png

PHOTO = png(make_picture(60, 80))
ITS_OWN = {"date", "x-request-id", "server-timing", "cache-status"}
"""headers that say how a reply came about, not what it is"""


@pytest.fixture(scope="module")
def replicas(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx.Client]]:
    folder = tmp_path_factory.mktemp("replicas")
    settings = {"SDC_MODEL": str(small_model), "SDC_SIGNING_KEYS": "", "SDC_CPU_WORKERS": "1"}
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(folder, folder / name, **settings)) for name in ("one", "two")]
        yield [stack.enter_context(httpx.Client(base_url=server.base, timeout=60)) for server in servers]


@pytest.fixture(scope="module")
def path(replicas: list[httpx.Client]) -> str:
    """Of a picture that the first of the two made."""
    return str(replicas[0].post("/compress?tag=shoes", content=PHOTO).raise_for_status().json()["links"]["render"])


def asked(path: str) -> list[tuple[str, str, dict[str, str]]]:
    blob = path.replace("render", "blobs")
    return [
        ("GET", f"{path}.png", {}),
        ("GET", f"{path}.webp", {}),
        ("GET", f"{path}.webp?w=40&h=40&fit=cover&q=60&steps=0", {}),
        ("GET", path, {"accept": "image/avif"}),
        ("HEAD", f"{path}.png", {}),
        ("GET", f"{path}.jpg?q=80", {}),
        ("GET", f"{path}?colour=red", {}),
        ("GET", "/render/" + "a" * 26, {}),
        ("GET", blob, {}),
        ("HEAD", blob, {}),
        ("GET", blob, {"range": "bytes=5-9"}),
        ("GET", f"{blob}/info", {}),
    ]


@pytest.mark.parametrize("index", range(len(asked(""))))
def test_both_say_the_same(replicas: list[httpx.Client], path: str, index: int) -> None:
    method, address, headers = asked(path)[index]
    first, second = (replica.request(method, address, headers=headers) for replica in replicas)
    assert first.status_code == second.status_code
    told = [{name: value for name, value in reply.headers.items() if name not in ITS_OWN} for reply in (first, second)]
    problem = first.headers.get("content-type") == "application/problem+json"
    assert told[0] == told[1]
    assert problem or first.content == second.content  # one of them was made by the other, or both are of the same integers


@pytest.mark.parametrize("suffix", [".png", ".webp?w=30", ""])
def test_what_one_made_the_other_confirms_without_work(replicas: list[httpx.Client], path: str, suffix: str) -> None:
    tag = replicas[0].get(path + suffix).headers["etag"]
    blob = path.replace("render", "blobs")
    assert replicas[1].get(path + suffix, headers={"if-none-match": tag}).status_code == 304
    assert replicas[1].get(blob, headers={"if-none-match": replicas[0].get(blob).headers["etag"]}).status_code == 304


def test_the_same_photo_at_the_other_is_known(replicas: list[httpx.Client], path: str) -> None:
    first, second = (replica.post("/compress", content=PHOTO) for replica in replicas)
    assert (second.status_code, second.json()) == (200, first.json())
    assert second.json()["preview"]
    both = [replica.post("/compress?quality=33", content=PHOTO) for replica in reversed(replicas)]
    assert [reply.status_code for reply in both] == [201, 200]
