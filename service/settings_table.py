"""The settings as a table: for docs/OPERATIONS.md, and for the terminal with the values in force.

Everything is read off ``service.settings``: a field that is added there is in both tables.  Knows nothing of what the settings do, and
never shows a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import PydanticUndefined

from service.errors import BadParameter
from service.settings import Settings

BEGIN = "<!-- settings: made by `make docs` from service/settings.py -->"
END = "<!-- end of settings -->"
HEAD = ("name", "takes", "default", "what")


@dataclass(frozen=True)
class Row:
    """One setting."""

    name: str
    """of the environment variable"""
    takes: str
    """the values it takes, in words"""
    default: str
    what: str


def rows() -> list[Row]:
    """Every setting, in the order of the class.  Raises BadParameter for one that says nothing of itself."""
    prefix, schema = Settings.model_config["env_prefix"], Settings.model_json_schema()["properties"]
    found = []
    for name, field in Settings.model_fields.items():
        if not field.description:
            raise BadParameter(f"the setting '{name}' has no description: give its Field one in service/settings.py")
        default = schema[name]["default"] if "default" in schema[name] else field.get_default(call_default_factory=True)
        if default is PydanticUndefined:
            raise BadParameter(f"the setting '{name}' has no default: a service must start without being told anything")
        found.append(Row(f"{prefix}{name}".upper(), takes(schema[name]), _written(name, default), " ".join(field.description.split())))
    return found


def takes(schema: Mapping[str, Any]) -> str:
    """What a property of a JSON schema accepts, in words."""
    if "anyOf" in schema:
        schema = next(each for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        *others, last = (f"`{each}`" for each in schema["enum"])
        return f"{', '.join(others)} or {last}"
    kind = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "array": "JSON list", "string": "text"}
    words = kind.get(schema.get("type", ""), "JSON object")
    words = {"path": "path", "password": "secret"}.get(schema.get("format", ""), words)
    return ", ".join((words, *_bounds(schema)))


def _bounds(schema: Mapping[str, Any]) -> list[str]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return [f"{low} to {high}"]
    named = (("minimum", "at least {}"), ("maximum", "at most {}"), ("exclusiveMinimum", "over {}"), ("exclusiveMaximum", "under {}"))
    return [words.format(schema[key]) for key, words in (*named, ("minLength", "at least {} characters")) if key in schema]


def _written(name: str, value: Any) -> str:
    """A default as it would be given in the environment."""
    if value is None:
        return "none"
    whole = isinstance(value, float) and value.is_integer()
    text = value if isinstance(value, str) else json.dumps(int(value) if whole else value)
    size = ""
    if name.endswith("_bytes") and isinstance(value, int) and value >= 1 << 20:
        size = f" ({value / (1 << 30):g} GiB)" if value >= 1 << 30 else f" ({value / (1 << 20):g} MiB)"
    return f"`{text}`{size}"


def markdown() -> str:
    """The table of the document."""
    lines = [HEAD, ("---",) * len(HEAD), *((f"`{row.name}`", row.takes, row.default, row.what) for row in rows())]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def written_into(document: str) -> str:
    """The document with the table between its markers made anew; raises BadParameter where they are missing."""
    before, found, rest = document.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise BadParameter(f"there is no place for the table: put the lines '{BEGIN}' and '{END}' where it shall stand")
    return f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}"


def in_force(settings: Settings) -> list[tuple[Row, str, str]]:
    """Each setting with its value as text, secrets masked, and where it comes from: ``environment`` or ``default``."""
    values = settings.model_dump(mode="json")
    told = []
    for row, name in zip(rows(), Settings.model_fields, strict=True):
        value = values[name]
        text = "none" if value is None else _harmless(value) if isinstance(value, str) else json.dumps(value)
        told.append((row, text, "environment" if name in settings.model_fields_set else "default"))
    return told


def _harmless(text: str) -> str:
    """An address without what may be a secret of it: user, password and query."""
    if not re.match(r"[a-z0-9+.-]+://", text, re.IGNORECASE):
        return text
    parts = urlsplit(text)
    user, at, host = parts.netloc.rpartition("@")
    query = "?***" if parts.query else ""
    return f"{parts.scheme}://{'***@' if user or at else ''}{host}{parts.path}{query}"
