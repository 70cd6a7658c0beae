"""Codes an integer tensor losslessly: passes over a lattice, tables by look-up, constriction's range coder.

symbols (C, h, w) -> for each group, for each phase: predict -> table rows -> range coder -> words -> bytes

A group is sent at fine steps only, where the profile says so; its symbols are 0 at coarser ones.  Of flat ground one position is sent,
and the others get its symbols as soon as those of a group are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import constriction
import numpy as np
import numpy.typing as npt

from service.codec import words
from service.codec.context import Integers, Predictor, visible
from service.codec.ground import Mask, pattern
from service.codec.lattice import PHASES, Lattice
from service.codec.steps import LARGEST_SYMBOL, Symbols
from service.codec.tables import (
    ALPHABET,
    ESCAPE,
    HIGHEST_SCALE,
    LOWEST_SCALE,
    OFFSETS,
    REACH,
    SCALE_COUNT,
    SCALES_PER_OCTAVE,
    SHORT_REACH,
    SHORT_TABLES,
    TOTAL,
    Counts,
    short_counts,
)
from service.errors import CorruptBlob

ESCAPE_RANGE = 1 << 20
"""an escaped symbol is sent plain in this range, centred"""
CHUNK = 4096
"""lattice positions predicted at once, in whole rows: bounds memory on large pictures"""

_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
_UNIFORM = constriction.stream.model.Uniform()


@dataclass(frozen=True)
class Chunk:
    """Some positions of one pass, with their prediction already turned into table rows."""

    where: tuple[slice, slice, slice]
    """rows, columns and channels of the symbols: n positions, row by row"""
    centre: Integers
    """(n, group) the symbol at the middle of the table, before the low bits are put back"""
    low_bits: Integers
    """(n, group) how many low bits are sent plain"""
    table: Integers
    """(n, group) index of the frequency table"""
    sent: npt.NDArray[np.bool_] | None = None
    """which positions of ``where`` are these n; None for all"""

    def take(self, symbols: Symbols) -> Integers:
        """The chunk's symbols, (n, group), of (h, w, C)."""
        place = symbols[self.where]
        return place.reshape(self.centre.shape) if self.sent is None else place[self.sent]

    def put(self, symbols: Symbols, values: Integers) -> None:
        place = symbols[self.where]
        if self.sent is None:
            place[...] = values.reshape(place.shape)
        else:
            place[self.sent] = values

    def split(self, values: Integers) -> tuple[Integers, Integers]:
        """Symbols to their place in the table (before clipping to the alphabet) and their low bits."""
        distance = values - self.centre
        if not self.low_bits.any():
            return distance, self.low_bits
        high = distance >> self.low_bits
        return high, distance - (high << self.low_bits)

    def letters(self, symbols: Symbols) -> Integers:
        """The letter of a whole table for each symbol, (n, group)."""
        high, _ = self.split(self.take(symbols))
        return np.where(np.abs(high) <= REACH, high + REACH, ESCAPE)

    def join(self, high: Integers, low: Integers) -> Integers:
        return (high << self.low_bits) + low + self.centre


class _Tables:
    """Some of a profile's tables, one after another, all of the same alphabet.

    Args:
        counts: (.., letters): those tables and perhaps others after them.
        reach: letters stand for -reach..reach, the last for all beyond.
        which: numbers of the tables.
    """

    def __init__(self, counts: Counts, reach: int, which: range) -> None:
        self.which, self.reach, self.escape = which, reach, 2 * reach + 1
        self.probabilities = counts.reshape(-1, self.escape + 1)[which.start : which.stop] / float(TOTAL)

    def meet(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        """(n, group): which symbols are coded with one of these."""
        return (chunk.table >= self.which.start) & (chunk.table < self.which.stop)

    @property
    def cost(self) -> npt.NDArray[np.float64]:
        """(tables, ALPHABET): bits of each letter of a whole table."""
        bits = -np.log2(self.probabilities)
        cost = np.repeat(bits[:, self.escape :] + np.log2(ESCAPE_RANGE), ALPHABET, axis=1)
        cost[:, REACH - self.reach : REACH + self.reach + 1] = bits[:, : self.escape]
        return cost


class EntropyCoder:
    """Lossless coding of symbols (C, h, w) under one predictor."""

    def __init__(self, predictor: Predictor, *, short_tables: bool = True) -> None:
        """``short_tables``: whether small spreads have them, as since version 2 of the format."""
        self._predictor = predictor
        self._rough = predictor.rough()
        short = SHORT_TABLES if short_tables else 0
        self._tables = [
            _Tables(short_counts(predictor.counts), SHORT_REACH, range(short)),
            _Tables(predictor.counts, REACH, range(short, SCALE_COUNT * OFFSETS)),
        ]
        self._cost = np.concatenate([tables.cost for tables in self._tables])
        self.least_bits = float(self._cost.min())
        """no symbol costs less: a payload shorter than this times the symbols is refused unread"""

    def encode(self, symbols: Symbols, step_index: int, inside: Mask | None = None) -> bytes:
        """Symbols (C, h, w), each within 16 bits, to bytes; those of groups that are not sent at this step are taken for 0.

        ``inside``: (h, w), positions of flat ground, all of the same symbols.
        """
        encoder = constriction.stream.queue.RangeEncoder()
        last = _channels_last(symbols)
        for chunk in self._chunks(last, step_index, inside=inside):
            high, low = chunk.split(chunk.take(last))
            escaped = np.zeros(high.shape, bool)
            for tables in self._tables:
                here = tables.meet(chunk)
                if not here.any():
                    continue
                letters = high[here] + np.int32(tables.reach)
                beyond = (letters < 0) | (letters >= tables.escape)
                if beyond.any():
                    letters[beyond] = tables.escape
                    escaped[here] = beyond
                encoder.encode(letters, _CATEGORICAL, tables.probabilities.take(chunk.table[here] - tables.which.start, axis=0))
            if escaped.any():
                encoder.encode(high[escaped] + np.int32(ESCAPE_RANGE // 2), _UNIFORM, np.full(int(escaped.sum()), ESCAPE_RANGE, np.int32))
            wide = chunk.low_bits > 0
            if wide.any():
                encoder.encode(low[wide], _UNIFORM, np.int32(1) << chunk.low_bits[wide])
        return words.to_bytes(encoder)

    def decode(self, payload: bytes, shape: tuple[int, int, int], step_index: int, inside: Mask | None = None) -> Symbols:
        """Bytes to symbols of ``shape``; raises CorruptBlob for bytes that no encoder wrote, as far as that can be seen."""
        positions = shape[1] * shape[2] if inside is None else inside.size - int(inside.sum()) + 1
        if 8 * len(payload) + 64 < self.least_bits * int(self.sent(step_index).sum()) * positions:
            raise CorruptBlob("the payload is too short for a picture of this size")
        decoder = words.decoder_of(payload)
        symbols: Symbols = np.zeros((*shape[1:], shape[0]), np.int32)
        try:
            for chunk in self._chunks(symbols, step_index, inside=inside):
                high = np.empty(chunk.table.shape, np.int32)
                escaped = np.zeros(high.shape, bool)
                for tables in self._tables:
                    here = tables.meet(chunk)
                    if not here.any():
                        continue
                    letters = decoder.decode(_CATEGORICAL, tables.probabilities.take(chunk.table[here] - tables.which.start, axis=0))
                    high[here] = letters - np.int32(tables.reach)
                    escaped[here] = letters == tables.escape
                if escaped.any():
                    high[escaped] = decoder.decode(_UNIFORM, np.full(int(escaped.sum()), ESCAPE_RANGE, np.int32))
                    high[escaped] -= ESCAPE_RANGE // 2
                low = np.zeros_like(high)
                wide = chunk.low_bits > 0
                if wide.any():
                    low[wide] = decoder.decode(_UNIFORM, np.int32(1) << chunk.low_bits[wide])
                values = chunk.join(high, low)
                if np.abs(values).max() > LARGEST_SYMBOL:
                    raise CorruptBlob("the payload decodes to a symbol out of range")
                chunk.put(symbols, values)
        except (AssertionError, ValueError) as error:  # constriction's word for a stream that no encoder writes
            raise CorruptBlob("the payload cannot be decoded") from error
        return np.ascontiguousarray(symbols.transpose(2, 0, 1))

    @property
    def channels(self) -> int:
        """C, sent or not."""
        return sum(self._predictor.group_sizes)

    def sent(self, step_index: int) -> npt.NDArray[np.bool_]:
        """(C,): which channels are sent at this step."""
        return np.repeat(np.array(self._predictor.coarsest) >= step_index, self._predictor.group_sizes)

    def ideal_bits(self, symbols: Symbols, step_index: int, inside: Mask | None = None) -> float:
        """Code length under the tables, without coder or padding."""
        return self._bits(self._predictor, symbols, step_index, inside)

    def estimated_bits(self, symbols: Symbols, step_index: int, inside: Mask | None = None) -> float:
        """``ideal_bits`` to about a thousandth, in half the time: in floats, which is good enough to search by."""
        return self._bits(self._rough, symbols, step_index, inside)

    def _bits(self, predictor: Predictor, symbols: Symbols, step_index: int, inside: Mask | None) -> float:
        total = 0.0
        last = _channels_last(symbols)
        for chunk in self._chunks(last, step_index, predictor, inside):
            letters = chunk.letters(last)
            total += float(self._cost.take(chunk.table * ALPHABET + letters).sum())
            total += float(chunk.low_bits.sum())
        return total

    def letters(self, symbols: Symbols, step_index: int) -> Iterator[tuple[Integers, Integers]]:
        """Which table each symbol meets and which letter of it is sent, flat, pass by pass: for fitting tables."""
        last = _channels_last(symbols)
        for chunk in self._chunks(last, step_index):
            yield chunk.table.ravel(), chunk.letters(last).ravel()

    def _chunks(self, symbols: Symbols, step_index: int, predictor: Predictor | None = None, inside: Mask | None = None) -> Iterator[Chunk]:
        """Walk the passes over symbols (h, w, C) in order.

        The consumer of a chunk must have put its symbols there when it asks for the next.
        """
        predictor = predictor or self._predictor
        like = None if inside is None else pattern(inside)
        sent = None if inside is None else ~inside
        if sent is not None:
            sent[like] = True
        height, width, channels = symbols.shape
        lattice = Lattice(channels, height, width, predictor.dtype)
        end = 0
        for group, (size, side, coarsest) in enumerate(zip(predictor.group_sizes, predictor.windows, predictor.coarsest, strict=True)):
            start, end = end, end + size
            if step_index > coarsest:
                continue
            for phase, (row, column) in enumerate(PHASES):
                rows, columns = lattice.shape(phase)
                rows_at_once = max(1, CHUNK // max(1, columns))
                for first in range(0, rows if columns else 0, rows_at_once):
                    last = min(first + rows_at_once, rows)
                    seen = lattice.around(phase, slice(first, last), slice(0, start), slice(start, end), side)
                    where = (slice(row + 2 * first, row + 2 * last, 2), slice(column, None, 2), slice(start, end))
                    these = None if sent is None else sent[where[:2]]
                    if these is not None and not these.any():
                        continue
                    mean, scale = predictor.predict(seen, group, phase, step_index)
                    yield _chunk(where, mean, scale) if these is None else _chunk(where, mean[these.ravel()], scale[these.ravel()], these)
                if like is not None and phase == 0:
                    symbols[inside, start:end] = symbols[like][start:end]
                lattice.put(phase, slice(start, end), visible(symbols[row::2, column::2, start:end], step_index))


def _chunk(where: tuple[slice, slice, slice], mean: Integers, scale: Integers, sent: Mask | None = None) -> Chunk:
    """Turn a prediction into tables.

    A spread beyond the widest table is halved k times: the k low bits of the distance are nearly uniform then and are sent plain, and
    the table codes the rest.  With k = 0 the table's middle is the rounded-down mean; otherwise half a cell is added so that the
    mean's remainder, (eighths + 4) / 2**k, stays within one cell.
    """
    whole, eighths = mean >> 3, mean & 7
    if not scale.size or scale.max() <= HIGHEST_SCALE:  # nearly always
        return Chunk(where, whole, np.zeros_like(scale), (scale - LOWEST_SCALE) * OFFSETS + eighths, sent)
    low_bits = np.maximum(0, -((HIGHEST_SCALE - scale) // SCALES_PER_OCTAVE))
    table_scale = np.clip(scale - SCALES_PER_OCTAVE * low_bits, LOWEST_SCALE, HIGHEST_SCALE)
    half_cell = np.where(low_bits > 0, (1 << low_bits) >> 1, 0)
    offset = np.where(low_bits > 0, (eighths + 4) >> low_bits, eighths)
    table = (table_scale - LOWEST_SCALE) * OFFSETS + offset
    return Chunk(where, whole - half_cell, low_bits, table, sent)


def _channels_last(symbols: Symbols) -> Symbols:
    """(C, h, w) to (h, w, C): what a pass touches lies together then."""
    return np.ascontiguousarray(symbols.transpose(1, 2, 0), np.int32)
