"""docs/API.md says what is so."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import errors
from service.api.problems import status_of
from service.api.schemas import RenderQuery, SizedQuery

PAGE = (Path(__file__).parents[2] / "docs" / "API.md").read_text()


def tree(cls: type[errors.SdcError]) -> Iterator[type[errors.SdcError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


def test_every_error_is_documented_with_its_status() -> None:
    rows = {kind: int(status) for status, kind in re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", PAGE, re.MULTILINE)}
    ours = {cls.kind: status_of(cls.__new__(cls)) for cls in tree(errors.SdcError) if cls is not errors.BadModel}
    assert rows == ours | {"method-not-allowed": 405}


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
