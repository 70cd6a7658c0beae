"""Flat ground: the positions whose symbols are all those of one other, sent as a bitmap instead of symbol by symbol.

    latent -> find -> a place of it; with symbols at a step -> around -> mask (h, w) -> write -> section -> read -> mask

A product on white is half ground, and nothing that a pass knows tells it of the symbols that stand beside each other in the same pass.
How the passes leave the ground out is ``service.codec.entropy``'s.
"""

from __future__ import annotations

from typing import Final

import constriction
import numpy as np
import numpy.typing as npt

from service.codec import words
from service.codec.steps import Latent, Symbols
from service.codec.tables import TOTAL
from service.errors import CorruptBlob

Mask = npt.NDArray[np.bool_]
"""(h, w): which positions are ground"""
Place = tuple[int, int]
"""row and column of a position"""

NEIGHBOURS: Final = ((0, -1), (-1, 0), (-1, 1), (-1, -1))
"""rows and columns away, of what says how likely a position is ground: the first counts 1, the next 2, 4, 8; outside the picture all is"""
GROUND_OF_256: Final = (1, 231, 139, 138, 11, 215, 228, 253, 5, 18, 4, 237, 46, 3, 18, 255)
"""how likely, in 256ths, by the sum of the neighbours that are: as it was in the bitmaps of 24 shapes on white at three steps"""

FLAT: Final = 0.02
"""of the normalised latent's unit: what differs less is flat"""
NEARLY: Final = 1 / 32
"""of a step: what differs less may be rounded alike"""
FEW_CHANNELS: Final = 4
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


def find(latent: Latent) -> Place | None:
    """A position of the latent's (C, h, w) flat ground, or None where there is none that pays for its bitmap.

    Flat is what hardly differs from position to position, in all channels; a blank wall in a photograph does.
    """
    few = latent[:FEW_CHANNELS]
    if _again(few).sum() < FEWEST:  # a quick no, as of nearly every photograph
        return None
    again = _again(latent)
    if again.sum() < FEWEST:
        return None
    # the largest of several, told apart by a few channels
    candidates = np.flatnonzero(again)
    keys = np.rint(few[:, :, 1:].reshape(len(few), -1)[:, candidates] / FLAT).astype(np.int64).T
    _, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
    row, column = divmod(int(candidates[first[counts.argmax()]]), latent.shape[2] - 1)
    return None if _paying(_near(latent, (row, column + 1), FLAT)) is None else (row, column + 1)


def around(latent: Latent, symbols: Symbols, where: Place, step: float) -> Mask | None:
    """The ground that a position of it is in, at this step; None where a bitmap does not pay.

    Makes the symbols of all of it those of the one position: rounding may have told apart what differs by the last digit of a float.
    """
    alike = (symbols == symbols[:, where[0], where[1], None, None]).all(0)
    mask = _paying(alike | _near(latent, where, NEARLY * step))
    if mask is not None:
        symbols[:, mask] = symbols[:, where[0], where[1], None]
    return mask


def _again(latent: Latent) -> Mask:
    """(h, w - 1): which positions are as those to the left."""
    again: Mask = (np.abs(latent[:, :, 1:] - latent[:, :, :-1]) <= FLAT).all(0)
    return again


def _near(latent: Latent, where: Place, tolerance: float) -> Mask:
    near: Mask = (np.abs(latent - latent[:, where[0], where[1], None, None]) <= tolerance).all(0)
    return near


def _paying(mask: Mask) -> Mask | None:
    bits = float(_BITS[_contexts(mask), mask.astype(int)].sum())
    return mask if mask[::2, ::2].any() and bits + SECTION_BITS < SAVED_BITS * int(mask.sum()) else None


def pattern(mask: Mask) -> Place:
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
    return words.to_bytes(encoder)


def read(content: bytes, height: int, width: int) -> Mask:
    """The reverse; raises CorruptBlob for bytes that no encoder wrote, as far as that can be seen."""
    decoder = words.decoder_of(content)
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
