"""A range coder's words as bytes, and back: little-endian, the zero bytes at the end left off (docs/FORMAT.md)."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
import numpy.typing as npt


def to_bytes(encoder: Any) -> bytes:
    """What a ``RangeEncoder`` was given."""
    words: npt.NDArray[np.uint32] = encoder.get_compressed()
    return words.astype("<u4").tobytes().rstrip(b"\0")


def decoder_of(content: bytes) -> Any:
    """A ``RangeDecoder`` of what ``to_bytes`` gave."""
    return constriction.stream.queue.RangeDecoder(np.frombuffer(content + bytes(-len(content) % 4), "<u4").astype(np.uint32))
