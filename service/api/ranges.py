"""Ranges of stored bytes, as RFC 9110 says (13.1.5 and 14).  One range; a request for several gets the whole, as it may."""

from __future__ import annotations

import re

from service.errors import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


def asked_range(header: str | None, if_range: str | None, entity_tag: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last that a request asks for; None: all.

    Args:
        header: of that name.
        if_range: a range is wanted only of the representation that this names, by its strong entity tag; a date names none of ours.
        entity_tag: of what is stored, strong.
        size: of what is stored, bytes.

    Raises RangeNotSatisfiable for a range beyond the end.
    """
    found = _ONE_RANGE.fullmatch(header or "")
    if not found or (if_range is not None and if_range.strip() != entity_tag):
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        begin, end = size - min(int(last), size), size
    else:
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < begin:
            return None  # malformed: to be ignored
    if begin >= end:
        raise RangeNotSatisfiable(f"there are {size} bytes: bytes=0-{size - 1} is all of them", size)
    return begin, end
