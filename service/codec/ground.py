"""Flat ground: the positions whose symbols are all those of one other, sent as a bitmap instead of symbol by symbol.

    symbols at a fine step -> find -> a place of it; with symbols at any step -> around -> mask (h, w) -> write -> section -> read -> mask

A product on white is half ground, and nothing that a pass knows tells it of the symbols that stand beside each other in the same pass.
How the passes leave the ground out is ``service.codec.entropy``'s.
"""

from __future__ import annotations

from typing import Final

import constriction
import numpy as np
import numpy.typing as npt

from service.codec.steps import Symbols
from service.codec.tables import TOTAL
from service.errors import CorruptBlob

Mask = npt.NDArray[np.bool_]
"""(h, w): which positions are ground"""

NEIGHBOURS: Final = ((0, -1), (-1, 0), (-1, 1), (-1, -1))
"""rows and columns away, of what says how likely a position is ground: the first counts 1, the next 2, 4, 8; outside the picture all is"""
GROUND_OF_256: Final = (1, 231, 139, 138, 11, 215, 228, 253, 5, 18, 4, 237, 46, 3, 18, 255)
"""how likely, in 256ths, by the sum of the neighbours that are: as it was in the bitmaps of 24 shapes on white at three steps"""

FEWEST: Final = 24
"""positions that are worth a bitmap"""
SECTION_BITS: Final = 24
"""of a bitmap's entry in the file"""
SAVED_BITS: Final = 2
"""by each position that is left out, at least; 3.5 to 40 from the coarsest of the bundled model's rate points to the finest"""

_COUNTS = np.array([(TOTAL - 256 * likely, 256 * likely) for likely in GROUND_OF_256])
_PROBABILITIES = _COUNTS / float(TOTAL)
_BITS = -np.log2(_PROBABILITIES)
_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
_MODELS = [constriction.stream.model.Categorical(each, perfect=False) for each in _PROBABILITIES]


def may_be(symbols: Symbols) -> bool:
    """Whether enough positions have the symbols of those before them: a quick no, of a few channels too."""
    return int((symbols[..., 1:] == symbols[..., :-1]).all(0).sum()) >= FEWEST // 2


def find(symbols: Symbols) -> tuple[int, int] | None:
    """Row and column of a position whose symbols most others have too, where a bitmap of them pays; symbols are (C, h, w).

    At a fine step: at coarse ones natural pictures are alike in many places as well, which then cost next to nothing.
    """
    channels, _, width = symbols.shape
    rows = np.ascontiguousarray(symbols.reshape(channels, -1).T)
    again = rows[1:][(rows[1:] == rows[:-1]).all(1)]
    if len(again) < FEWEST:
        return None
    # rows are told apart by a sum with random factors, which is quicker than sorting them; whatever it mixes up is not taken for ground
    keys = again.astype(np.int64) @ np.random.default_rng(0).integers(-(1 << 62), 1 << 62, channels)
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    alike = (rows == again[first[counts.argmax()]]).all(1)
    where = divmod(int(alike.argmax()), width)
    return None if around(symbols, where) is None else where


def around(symbols: Symbols, where: tuple[int, int]) -> Mask | None:
    """The positions of (C, h, w) whose symbols are those of one; None where a bitmap does not pay."""
    mask: Mask = (symbols == symbols[:, where[0], where[1], None, None]).all(0)
    if not mask[::2, ::2].any():
        return None
    bits = float(_BITS[_contexts(mask), mask.astype(int)].sum())
    return mask if bits + SECTION_BITS < SAVED_BITS * int(mask.sum()) else None


def pattern(mask: Mask) -> tuple[int, int]:
    """Row and column of the position that is sent and that all the others are like: the first of the first phase.  Raises CorruptBlob."""
    first = np.flatnonzero(mask[::2, ::2])
    if not len(first):
        raise CorruptBlob("the ground has no position that it could be like")
    row, column = divmod(int(first[0]), -(-mask.shape[1] // 2))
    return 2 * row, 2 * column


def write(mask: Mask) -> bytes:
    """A mask to its section."""
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(mask.ravel().astype(np.int32), _CATEGORICAL, _PROBABILITIES[_contexts(mask).ravel()])
    words: npt.NDArray[np.uint32] = encoder.get_compressed()
    return words.astype("<u4").tobytes().rstrip(b"\0")


def read(content: bytes, height: int, width: int) -> Mask:
    """The reverse; raises CorruptBlob for bytes that no encoder wrote, as far as that can be seen."""
    words = np.frombuffer(content + bytes(-len(content) % 4), "<u4").astype(np.uint32)
    decoder = constriction.stream.queue.RangeDecoder(words)
    above, rows = [1] * (width + 2), []
    try:
        for _ in range(height):
            row = [1]
            for column in range(1, width + 1):
                context = row[-1] + 2 * above[column] + 4 * above[column + 1] + 8 * above[column - 1]
                row.append(decoder.decode(_MODELS[context]))
            above = [*row, 1]
            rows.append(row[1:])
    except (AssertionError, ValueError) as error:
        raise CorruptBlob("the ground cannot be decoded") from error
    return np.array(rows, bool)


def _contexts(mask: Mask) -> npt.NDArray[np.intp]:
    """(h, w): the sum of the neighbours that are ground."""
    height, width = mask.shape
    padded = np.pad(mask, ((1, 0), (1, 1)), constant_values=True).astype(np.intp)
    sums = np.zeros((height, width), np.intp)
    for bit, (down, right) in enumerate(NEIGHBOURS):
        sums += padded[1 + down : 1 + down + height, 1 + right : 1 + right + width] << bit
    return sums
