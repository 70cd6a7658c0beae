"""docs/KEEPING.md: a new model beside the old one, nginx in front, one store behind."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.bench.serving import free_port, serving
from tests.conftest import build_model, make_picture, png
from tests.system.nginx import nginx

pytestmark = pytest.mark.system


@dataclass
class TwoModels:
    front: httpx.Client
    old: httpx.Client
    new: httpx.Client


@pytest.fixture(scope="module")
def both(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoModels]:
    folder, port = tmp_path_factory.mktemp("two"), free_port()
    models = {"old": small_model, "new": build_model(folder / "model", name="newer")}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(folder, folder / f"{name}.log", SDC_MODEL=str(model))) for name, model in models.items()
        }
        changes = {
            "127.0.0.1:8080": f"127.0.0.1:{servers['new'].port}",
            "127.0.0.1:8079": f"127.0.0.1:{servers['old'].port}",
            "127.0.0.1:8081": f"127.0.0.1:{port}",
        }
        stack.enter_context(nginx("two-models.conf", folder, port, changes))
        bases = (f"http://127.0.0.1:{port}", servers["old"].base, servers["new"].base)
        yield TwoModels(*(stack.enter_context(httpx.Client(base_url=base, timeout=60)) for base in bases))


def made_by(client: httpx.Client, seed: int) -> dict[str, str]:
    return dict(client.post("/compress", content=png(make_picture(64, 80, seed))).raise_for_status().json()["links"])


def test_pictures_of_both_models_have_one_address(both: TwoModels) -> None:
    old, new = made_by(both.old, 1), made_by(both.front, 1)
    assert old["webp"] != new["webp"]
    assert both.new.get(old["webp"]).status_code == 422
    for links, client in ((old, both.old), (new, both.new)):
        shown = both.front.get(links["webp"])
        assert (shown.status_code, shown.content) == (200, client.get(links["webp"]).content)
        again = both.front.get(links["webp"], headers={"if-none-match": shown.headers["etag"]})
        assert again.status_code == 304
    assert both.front.get(old["blob"]).status_code == 200


def test_what_is_wrong_otherwise_stays_wrong(both: TwoModels) -> None:
    assert both.front.get(f"/render/{'a' * 26}.webp").status_code == 404
    assert both.front.post("/compress", content=b"no picture").status_code == 415
    refused = both.front.post("/compress", content=png(make_picture(64, 80, 2))[:500])
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:sdc:problem:undecodable-picture")
