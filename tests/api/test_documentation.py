"""docs/API.md says what is so."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from service import errors
from service.api import protocol
from service.api.problems import status_of
from service.api.schemas import RenderQuery, SizedQuery
from service.bench.serving import serving
from tests.conftest import Plane

PAGE, README = ((Path(__file__).parents[2] / name).read_text() for name in ("docs/API.md", "README.md"))


def tree(cls: type[errors.SdcError]) -> Iterator[type[errors.SdcError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


def test_every_error_is_documented_with_its_status() -> None:
    rows = {kind: int(status) for status, kind in re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", PAGE, re.MULTILINE)}
    ours = {cls.kind: status_of(cls.__new__(cls)) for cls in tree(errors.SdcError) if cls not in (errors.BadModel, errors.NoDevice)}
    assert rows == ours | {"method-not-allowed": 405} | {kind: status for status, kind in protocol.KINDS.items()}


def test_every_parameter_of_a_render_is_documented() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE.partition("## What a cache")[0], re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == set(RenderQuery.model_fields) - {"expires", "key", "sig"}
    assert f"| {SizedQuery.model_fields['q'].default} | of a lossy" in PAGE


def test_the_snippet_signs_as_the_page_says() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet, names)
    call, result = re.findall(r"^`(sign\(.*?\))` is\n`(.*?)`", PAGE, re.MULTILINE)[0]
    assert eval(call, names) == result


@pytest.mark.parametrize("setting", sorted(set(re.findall(r"SDC_[A-Z_]+", PAGE))))
def test_every_setting_named_exists(setting: str) -> None:
    from service.settings import Settings

    assert setting.removeprefix("SDC_").lower() in Settings.model_fields


def test_the_readme_in_python(tmp_path: Path, photo: Plane, small_model: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    Image.fromarray(photo).save(tmp_path / "cat.jpg", quality=95)
    with serving(tmp_path, tmp_path / "log", SDC_MODEL=str(small_model)) as server:
        script = snippet.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}").replace("4000", "40000")  # a model of random weights
        said = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout
    assert re.fullmatch(r"[a-z2-7]{26} \d+ #[0-9a-f]{6} \d+\n", said)
