"""The table of the settings: the document's is the generated one, and nobody sees a secret."""

import json
import re
from pathlib import Path

import pytest
from pydantic import Field
from typer.testing import CliRunner

from service import settings_table
from service.cli import app
from service.errors import BadParameter
from service.settings import Settings, misspelt

DOCUMENT = Path(__file__).parents[1] / "docs" / "OPERATIONS.md"
SECRET = "nobody may ever read this"


def test_the_document_has_the_table_of_the_settings() -> None:
    text = DOCUMENT.read_text()
    assert settings_table.written_into(text) == text, "service/settings.py has changed: run `make docs`"


def test_every_setting_is_in_the_table_once() -> None:
    names = re.findall(r"^\| `(SDC_\w+)` \|", settings_table.markdown(), re.MULTILINE)
    assert names == [f"SDC_{name.upper()}" for name in Settings.model_fields]


def test_the_table_does_not_depend_on_whose_machine_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_table.markdown()
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere/else")
    monkeypatch.setenv("SDC_SLOTS", "3")
    assert settings_table.markdown() == before
    assert str(Path.home()) not in before


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 64}, "whole number, 1 to 64"),
        ({"type": "number", "exclusiveMinimum": 0}, "number, over 0"),
        ({"type": "integer", "minimum": 1024}, "whole number, at least 1024"),
        ({"enum": ["auto", "on", "off"], "type": "string"}, "`auto`, `on` or `off`"),
        ({"anyOf": [{"type": "null"}, {"type": "string", "format": "password", "minLength": 16}]}, "secret, at least 16 characters"),
        ({"type": "boolean"}, "`true` or `false`"),
        ({"type": "string", "format": "path"}, "path"),
        ({"$ref": "#/$defs/ApiKey"}, "JSON object"),
    ],
)
def test_what_a_setting_takes_in_words(schema: dict[str, object], words: str) -> None:
    assert settings_table.takes(schema) == words


def test_a_setting_that_says_nothing_of_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Settings):
        mystery: int = 3

    class Homeless(Settings):
        mystery: int = Field(description="No default.")

    monkeypatch.setattr(settings_table, "Settings", Silent)
    with pytest.raises(BadParameter, match="'mystery' has no description"):
        settings_table.rows()
    monkeypatch.setattr(settings_table, "Settings", Homeless)
    with pytest.raises(BadParameter, match="'mystery' has no default"):
        settings_table.rows()


def test_what_sounds_like_a_secret_is_one() -> None:
    """A plain string would be printed by `sdc settings` and stand in a traceback."""
    properties = Settings.model_json_schema()["properties"]
    secrets = {name for name, schema in properties.items() if "password" in json.dumps(schema) or "ApiKey" in json.dumps(schema)}
    assert {name for name in properties if re.search(r"key|secret|token|password", name)} == secrets


def test_values_in_force_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SDC_SLOTS": "17",
        "SDC_PORT": "",
        "SDC_ADMIN_KEY": SECRET,
        "SDC_API_KEYS": json.dumps({"shop": {"secret": SECRET, "scopes": ["compress"]}}),
        "SDC_SIGNING_KEYS": json.dumps({"k1": SECRET}),
        "SDC_STORE_URL": f"s3://user:{SECRET.replace(' ', '-')}@bucket/prefix?token={SECRET.replace(' ', '-')}",
        "COLUMNS": "200",
    }.items():
        monkeypatch.setenv(name, value)
    told = {row.name: (value, source) for row, value, source in settings_table.in_force(Settings())}
    assert told["SDC_SLOTS"] == ("17", "environment")
    assert told["SDC_PORT"] == ("8080", "default")
    assert told["SDC_STORE_URL"] == ("s3://***@bucket/prefix?***", "environment")
    assert {source for name, (_, source) in told.items() if "MODEL" in name} == {"default"}
    printed = CliRunner().invoke(app, ["settings"])
    assert printed.exit_code == 0, printed.output
    assert "SDC_SLOTS" in printed.output and "17" in printed.output and "shop" in printed.output
    for word in (SECRET, SECRET.replace(" ", "-")):
        assert word not in printed.output
        assert all(word not in value for value, _ in told.values())


def test_what_looks_like_a_setting_and_is_none_is_told() -> None:
    for wrong, meant in (("SDC_API_KEY", "SDC_API_KEYS"), ("sdc_slot", "SDC_SLOTS"), ("SDC_MAX_PIXEL", "SDC_MAX_PIXELS")):
        assert misspelt({wrong: "1"}) == [f"{wrong} is no setting: is {meant} meant?"]
    assert misspelt({"SDC_XYZZY": "1"}) == ["SDC_XYZZY is no setting"]


def test_settings_and_what_kubernetes_sets_are_nothing_to_tell() -> None:
    settings = {f"SDC_{name.upper()}": "1" for name in Settings.model_fields} | {"sdc_slots": "1", "SDC_EMPTY": "", "PATH": "/bin"}
    service = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80", "PORT": "tcp://10.0.0.1:80"}
    port = {f"PORT_8080_TCP{part}": "x" for part in ("", "_PROTO", "_PORT", "_ADDR")}
    kubernetes = {f"{name}_{key}": value for name in ("SDC", "SDC_CACHE") for key, value in {**service, **port}.items()}
    assert misspelt(settings | kubernetes) == []


def test_making_the_document_anew(tmp_path: Path) -> None:
    old = re.sub(r"^\| `SDC_SLOTS`.*\n", "", DOCUMENT.read_text(), flags=re.MULTILINE)
    (tmp_path / "page.md").write_text(old)
    for said in ("written", "as it was"):
        done = CliRunner().invoke(app, ["settings", "--into", str(tmp_path / "page.md")])
        assert done.exit_code == 0 and said in done.output, done.output
    assert (tmp_path / "page.md").read_text() == DOCUMENT.read_text() != old
    (tmp_path / "other.md").write_text("no markers here")
    done = CliRunner().invoke(app, ["settings", "--into", str(tmp_path / "other.md")])
    assert done.exit_code == 1 and "put the lines" in done.output
    assert (tmp_path / "other.md").read_text() == "no markers here"
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    done = CliRunner().invoke(app, ["settings", "--into", str(tmp_path / "a.jpg")])
    assert done.exit_code == 1 and "is no text" in done.output


def test_a_model_by_its_name_is_of_the_environment(monkeypatch: pytest.MonkeyPatch, small_model: Path) -> None:
    monkeypatch.setenv("SDC_MODELS_DIR", str(small_model.parent))
    monkeypatch.setenv("SDC_MODEL", small_model.name)
    told = {row.name: (value, source) for row, value, source in settings_table.in_force(Settings())}
    assert told["SDC_MODEL"] == (str(small_model), "environment")


@pytest.mark.parametrize(("columns", "terminal"), [("80", False), ("80", True)])
def test_no_value_is_cut_off(monkeypatch: pytest.MonkeyPatch, columns: str, terminal: bool) -> None:
    """Through a pipe a setting is a line; on a terminal what is too long for it goes on below."""
    address = "s3://bucket/" + "x" * 120
    for name, value in {"SDC_STORE_URL": address, "COLUMNS": columns, **({"FORCE_COLOR": "1"} if terminal else {})}.items():
        monkeypatch.setenv(name, value)
    printed = CliRunner().invoke(app, ["settings"]).output
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert printed.count("x") >= 120
    assert (address in printed) != terminal
