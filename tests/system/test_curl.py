"""The README's curl lines, run by the real curl against a real server, word for word but for the port."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from service.bench.serving import Server, serving
from tests.conftest import Plane

pytestmark = pytest.mark.system
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, folder / "log") as server:
        yield server


def curl(server: Server, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "60", *arguments], capture_output=True, text=True, cwd=folder, check=False
    )


def test_the_readme(server: Server, tmp_path: Path, photo: Plane) -> None:
    Image.fromarray(photo).save(tmp_path / "cat.jpg", quality=95)
    block = re.search(r"```sh\n(# With `make serve`.*?)```", README.read_text(), re.DOTALL)
    assert block
    script = "set -eu\n" + block.group(1).replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "cat.sdc").stat().st_size <= 4000
    for name in ("cat.webp", "again.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (451, 300)
    assert '"method":"latent"' in done.stdout
    assert "etag: w/" in done.stdout.lower()


def test_an_upload_over_the_limit_is_refused_before_it_is_sent(server: Server, tmp_path: Path) -> None:
    """curl asks first (Expect: 100-continue) and need not send 70 MB."""
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(70 << 20)
    done = curl(
        server, "--data-binary", "@big", "-w", "\n%{http_code} %{size_upload}", "-H", "Expect: 100-continue",
        f"{server.base}/compress", folder=tmp_path,
    )  # fmt: skip
    code, uploaded = done.stdout.splitlines()[-1].split()
    assert code == "413", done.stdout + done.stderr
    assert int(uploaded) < 70 << 20
    assert "too-many-bytes" in done.stdout


def test_head_and_not_modified(server: Server, tmp_path: Path, photo: Plane) -> None:
    Image.fromarray(photo).save(tmp_path / "cat.png")
    reply = curl(server, "-D", "-", "-o", "/dev/null", "--data-binary", "@cat.png", f"{server.base}/compress", folder=tmp_path)
    location = re.search(r"^location: (.*)\r?$", reply.stdout, re.MULTILINE | re.IGNORECASE)
    assert location
    url = server.base + location.group(1).strip() + ".webp"
    head = curl(server, "-I", url, folder=tmp_path).stdout
    tag = re.search(r"^etag: (.*)\r?$", head, re.MULTILINE | re.IGNORECASE)
    assert tag
    again = curl(server, "-o", "/dev/null", "-w", "%{http_code}", "-H", f"If-None-Match: {tag.group(1).strip()}", url, folder=tmp_path)
    assert again.stdout == "304"
