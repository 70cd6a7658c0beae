"""Accept, If-Match and If-None-Match, as RFC 9110 says (sections 12.5.1, 13.1.1 and 13.1.2)."""

from __future__ import annotations

import re

from service.imaging.writing import FORMATS

DEFAULT_EXTENSION = "png"
"""what a client gets that names no type: every client can show it"""
PREFERENCE = ("webp", "png", "jpg", "avif")
"""ours, among types the client likes equally"""
BLOB_TYPE = "application/vnd.sdc"

_ENTITY_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


def qualities(accept: str) -> dict[str, float]:
    """Media range to quality; a malformed quality counts as 0."""
    found: dict[str, float] = {}
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                quality = float(value) if re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", value.strip()) else 0.0
        if media:
            found[media] = quality
    return found


def pick_extension(accept: str | None) -> str:
    """The format for an Accept header: the best of those the client names, unless it likes others better; then the default.

    A wildcard names nothing: whoever sends ``*/*`` may be old, and gets what every client can show.
    """
    wanted = qualities(accept or "")

    def quality(extension: str) -> float | None:
        media = FORMATS[extension].content_type
        return next((wanted[each] for each in (media, "image/*", "*/*") if each in wanted), None)

    named = [extension for extension in PREFERENCE if wanted.get(FORMATS[extension].content_type, 0.0) > 0]
    default = quality(DEFAULT_EXTENSION)
    if named:
        best = max(named, key=lambda extension: wanted[FORMATS[extension].content_type])
        return best if wanted[FORMATS[best].content_type] >= (default or 0.0) else DEFAULT_EXTENSION
    if default == 0.0:
        return next((extension for extension in ("jpg", "webp", "avif") if quality(extension) != 0.0), DEFAULT_EXTENSION)
    return DEFAULT_EXTENSION


def wants_blob(accept: str | None) -> bool:
    """Whether the client asks for the ``.sdc`` itself rather than JSON."""
    wanted = qualities(accept or "")
    return wanted.get(BLOB_TYPE, 0.0) > wanted.get("application/json", 0.0)


def misses(if_match: str | None, entity_tag: str) -> bool:
    """Whether an If-Match header is there and names others than this validator, by strong comparison; of what exists ``*`` is true."""
    if if_match is None or if_match.strip() == "*":
        return False
    return entity_tag.startswith("W/") or entity_tag not in (found.group() for found in _ENTITY_TAG.finditer(if_match))


def matches(if_none_match: str | None, entity_tag: str) -> bool:
    """Weak comparison of a validator with an If-None-Match header."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    ours = _ENTITY_TAG.fullmatch(entity_tag)
    return ours is not None and ours.group(1) in _ENTITY_TAG.findall(if_none_match)
