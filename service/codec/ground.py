"""Flat ground: where a picture is one colour, as the white behind a product.  Sent as that colour and a bitmap of the latent's positions.

    which cells of pixels are flat -> worth_sending -> Ground -> write -> section -> read -> Ground
    latent: the positions inside have the symbols of one of them -> Ground.inside, pattern

A product on white is half ground, and nothing that a pass knows tells it of the symbols that stand beside each other in the same pass.
How the passes leave the ground out is ``service.codec.entropy``'s; how it is found in pixels and gets its colour back is
``service.imaging.flat``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import constriction
import numpy as np
import numpy.typing as npt

from service.codec import words
from service.codec.tables import TOTAL
from service.errors import CorruptBlob

Mask = npt.NDArray[np.bool_]
"""(h, w): some of a latent's positions"""
Place = tuple[int, int]
"""row and column of a position"""
Colour = tuple[int, int, int]
"""red, green and blue, 0..255"""

NEIGHBOURS: Final = ((0, -1), (-1, 0), (-1, 1), (-1, -1))
"""rows and columns away, of what says how likely a position is ground: the first counts 1, the next 2, 4, 8; outside the picture all is"""
GROUND_OF_256: Final = (1, 231, 139, 138, 11, 215, 228, 253, 5, 18, 4, 237, 46, 3, 18, 255)
"""how likely, in 256ths, by the sum of the neighbours that are: as it was in the bitmaps of 24 shapes on white at three steps"""

COLOUR_BYTES: Final = 3
SECTION_BITS: Final = 8 * COLOUR_BYTES + 24
"""of the colour and of an entry in the file's table"""
SAVED_BITS: Final = 5
"""by each position that is left out; 3.5 to 40 from the coarsest of the bundled model's rate points to the finest"""

_COUNTS = np.array([(TOTAL - 256 * likely, 256 * likely) for likely in GROUND_OF_256])
_PROBABILITIES = _COUNTS / float(TOTAL)
_BITS = -np.log2(_PROBABILITIES)
_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
_MODELS = [constriction.stream.model.Categorical(each, perfect=False) for each in _PROBABILITIES]


@dataclass(frozen=True, eq=False)
class Ground:
    """Of one picture, at the size it is coded at."""

    mask: Mask
    """(h, w): positions whose whole cell of pixels is of the colour"""
    colour: Colour | None
    """None in files of version 5, whose masks tell what is left out"""

    @cached_property
    def inside(self) -> Mask | None:
        """(h, w): positions that are left out: all of whose neighbours are ground too, the picture's border being none.

        None where there is no ``pattern``.  The others are sent, because what the network makes of the product reaches into them.
        """
        if self.colour is None:
            return self.mask
        around = np.pad(self.mask, 1, constant_values=True)
        rows = around[:-2] & around[1:-1] & around[2:]
        inside: Mask = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
        return inside if inside[::2, ::2].any() else None


def worth_sending(mask: Mask, colour: Colour) -> Ground | None:
    """A picture's ground, or None where the positions left out do not pay for its bitmap."""
    ground = Ground(mask, colour)
    if ground.inside is None:
        return None
    bits = SECTION_BITS + float(_BITS[_contexts(mask), mask.astype(int)].sum())
    return ground if bits < SAVED_BITS * int(ground.inside.sum()) else None


def pattern(mask: Mask) -> Place:
    """Row and column of the position that is sent and that all the others are like: the first of the first phase.  Raises CorruptBlob."""
    first = np.flatnonzero(mask[::2, ::2])
    if not len(first):
        raise CorruptBlob("the ground has no position that it could be like")
    row, column = divmod(int(first[0]), -(-mask.shape[1] // 2))
    return 2 * row, 2 * column


def write(ground: Ground) -> bytes:
    """Ground, with a colour, to its section."""
    assert ground.colour is not None
    return bytes(ground.colour) + write_mask(ground.mask)


def read(content: bytes, height: int, width: int) -> Ground:
    """The reverse; raises CorruptBlob for bytes that no encoder wrote, as far as that can be seen."""
    if len(content) < COLOUR_BYTES:
        raise CorruptBlob("the ground has no colour")
    red, green, blue = content[:COLOUR_BYTES]
    return Ground(read_mask(content[COLOUR_BYTES:], height, width), (red, green, blue))


def write_mask(mask: Mask) -> bytes:
    """A mask to a bitmap."""
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(mask.ravel().astype(np.int32), _CATEGORICAL, _PROBABILITIES[_contexts(mask).ravel()])
    return words.to_bytes(encoder)


def read_mask(content: bytes, height: int, width: int) -> Mask:
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
