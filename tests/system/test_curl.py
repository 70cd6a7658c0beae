"""The README's curl lines, run by the real curl against a real server, word for word but for the port."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from service.bench.serving import Server, serving
from tests.conftest import Plane, filled
from tests.docs.blocks import block

pytestmark = pytest.mark.system
README, API = (Path(__file__).parents[2] / name for name in ("README.md", "docs/API.md"))


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


@pytest.mark.parametrize("options", [[], ["-H", "Expect:"], ["-H", "Expect:", "-H", "Transfer-Encoding: chunked"]])
def test_a_large_upload_to_a_full_service_sees_its_503(small_model: Path, tmp_path: Path, options: list[str]) -> None:
    """Whether curl asks first or not."""
    (tmp_path / "big").write_bytes(os.urandom(20_000_000))
    with serving(tmp_path, tmp_path / "log", SDC_MODEL=str(small_model), SDC_SLOTS="1") as narrow, filled(narrow):
        told = ["-D", "-", "-w", "%{http_code} %{size_upload}"]
        done = curl(narrow, "--data-binary", "@big", *options, *told, f"{narrow.base}/compress", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    code, uploaded = done.stdout.rpartition("}")[2].split()
    assert code == "503", done.stdout
    assert re.search(r"^retry-after: [1-9]\d*\r?$", done.stdout, re.MULTILINE | re.IGNORECASE)
    assert int(uploaded) < 20_000_000


def test_the_readme_in_javascript(server: Server, tmp_path: Path, photo: Plane) -> None:
    Image.fromarray(photo).save(tmp_path / "cat.jpg", quality=95)
    (snippet,) = re.findall(r"```js\n(.*?)```", README.read_text(), re.DOTALL)
    said = node(snippet.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"), tmp_path)
    assert re.fullmatch(r"[a-z2-7]{26} \d+ #[0-9a-f]{6} \d+\n", said)


def test_javascript_signs_as_the_page_says(tmp_path: Path) -> None:
    snippet = next(each for each in re.findall(r"```js\n(.*?)```", API.read_text(), re.DOTALL) if "createHmac" in each)
    call, result = re.findall(r"^`(sign\(.*?\))` is\n`(.*?)`", API.read_text(), re.MULTILINE)[0]
    assert node(f"{snippet}\nconsole.log({call});", tmp_path) == f"{result}\n"


def node(script: str, folder: Path) -> str:
    """What a script prints."""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_javascript_paints_before_the_picture_is_there(server: Server, tmp_path: Path, photo: Plane) -> None:
    """The page's snippet as a browser would run it: `image` and `file` are the page's, and addresses are relative to it."""
    Image.fromarray(photo).save(tmp_path / "cat.jpg", quality=95)
    snippet = block("docs/API.md", "const { preview, color")
    assert snippet in API.read_text()
    page = f"""
        import {{ readFile }} from 'node:fs/promises';
        const over = globalThis.fetch, fetch = (path, options) => over('{server.base}' + path, options);
        const file = await readFile('cat.jpg'), image = {{ style: {{}} }};
        {snippet}
        const shown = await fetch(image.src);
        console.log(JSON.stringify({{ ...image, type: shown.headers.get('content-type') }}));
    """
    told = json.loads(node(page, tmp_path))
    assert re.fullmatch(r"#[0-9a-f]{6} center / cover url\(data:image/\w+;base64,[\w+/=]+\)", told["style"]["background"])
    assert (told["width"], told["height"], told["type"]) == (451, 300, "image/webp")
