"""A second reader, written from docs/FORMAT.md alone, in plain Python integers: what it reads must be what the service reads."""

import json
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import accumulate, chain, pairwise, repeat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from service.codec import container
from service.codec.codec import Codec, Frame
from service.codec.context import LaplacePredictor
from service.codec.entropy import EntropyCoder
from service.codec.ground import Ground, write_mask
from service.codec.steps import quantise
from service.codec.tables import laplace_counts
from service.imaging.flat import lay
from service.imaging.picture import greyed
from service.manifest import read_manifest
from service.settings import BUNDLED_MODEL

PHASES = [(0, 0), (1, 1), (0, 1), (1, 0)]
Prediction = tuple[list[int], list[int]]
Predict = Callable[[int, int, list[list[list[int]]]], Prediction]


def header(content: bytes) -> tuple[int, int, int, bytes]:
    """Width, height, step index and latent section of an untiled file."""
    assert content[:4] == b"SDC\x02"
    assert zlib.crc32(content[:-4]) == struct.unpack("<I", content[-4:])[0]
    at = 12

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    width, height = varint(), varint()
    method, flags, step_index, sections = content[at : at + 4]
    at += 4
    assert (method, flags, sections) == (0, 0, 1)
    assert content[at] == 0
    at += 1
    length = varint()
    return width, height, step_index, content[at : at + length]


def fixed(exponent: Fraction) -> int:
    """round(4096 * 2 ** exponent)."""
    return round(4096 * 2 ** float(exponent))


def clip(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


class RangeDecoder:
    def __init__(self, payload: bytes) -> None:
        padded = payload + bytes(-len(payload) % 4)
        self.words = chain((int.from_bytes(padded[at : at + 4], "little") for at in range(0, len(padded), 4)), repeat(0))
        self.lower, self.range = 0, 2**64 - 1
        self.point = next(self.words) * 2**32 + next(self.words)

    def read(self, lefts: Sequence[int]) -> int:
        """The next letter, given the left of each."""
        unit = self.range >> 24
        quantile = (self.point - self.lower) % 2**64 // unit
        assert quantile < 2**24
        letter = bisect_right(lefts, quantile) - 1
        left, right = lefts[letter], lefts[letter + 1] if letter + 1 < len(lefts) else 2**24
        self.lower = (self.lower + unit * left) % 2**64
        self.range = unit * (right - left)
        if self.range < 2**32:
            self.range = self.range << 32
            self.lower = (self.lower << 32) % 2**64
            self.point = (self.point << 32) % 2**64 + next(self.words)
        return letter

    def table(self, counts: list[int]) -> int:
        n = len(counts)
        return self.read([i + (before * (2**24 - n) >> 16) for i, before in enumerate(accumulate(counts[:-1], initial=0))])

    def uniform(self, size: int) -> int:
        return self.read(range(0, 2**24, 2**24 // size))


class Reader:
    def __init__(self, groups: list[int], counts: np.ndarray, step_index: int, coarsest: list[int] | None = None) -> None:
        self.groups, self.counts, self.coarsest = groups, counts.tolist(), coarsest or [255] * len(groups)
        octaves = Fraction(step_index - 128, 32)
        self.step, self.inverse, self.index = fixed(octaves), fixed(-octaves), step_index

    def seen(self, q: int) -> int:
        return clip(q * self.step // 64, -4095, 4095)

    def read(
        self, payload: bytes, channels: int, height: int, width: int, predict: Predict, inside: Sequence[tuple[int, int]] = ()
    ) -> np.ndarray:
        decoder = RangeDecoder(payload)
        pattern = next(((y, x) for y, x in inside if y % 2 == x % 2 == 0), None)
        left_out = set(inside) - {pattern} if pattern else set()
        q = np.zeros((channels, height, width), int)
        known = np.zeros((channels, height, width), bool)
        start = 0
        for group, size in enumerate(self.groups):
            if self.index > self.coarsest[group]:
                start += size
                continue
            for phase, (row, column) in enumerate(PHASES):
                columns, rows = range(column, width, 2), range(row, height, 2)
                if not columns:
                    continue
                together = max(1, 4096 // len(columns))
                for first in range(0, len(rows), together):
                    places = [(y, x) for y in rows[first : first + together] for x in columns if (y, x) not in left_out]
                    plans = []
                    for y, x in places:
                        window = [
                            [
                                [
                                    self.seen(int(q[c, v, u])) if 0 <= v < height and 0 <= u < width and known[c, v, u] else 0
                                    for u in range(x - 2, x + 3)
                                ]
                                for v in range(y - 2, y + 3)
                            ]
                            for c in range(start + size)
                        ]
                        means, scales = predict(group, phase, window)
                        plans += [self.plan(m, s) for m, s in zip(means, scales, strict=True)]
                    values = self.chunk(decoder, plans)
                    for at, (y, x) in enumerate(places):
                        q[start : start + size, y, x] = values[at * size : (at + 1) * size]
                if phase == 0 and pattern is not None:
                    for y, x in inside:
                        q[start : start + size, y, x] = q[start : start + size, pattern[0], pattern[1]]
                known[start : start + size, row::2, column::2] = True
            start += size
        return q

    def chunk(self, decoder: RangeDecoder, plans: list[tuple[int, int, int, int]]) -> list[int]:
        high, escaped = [0] * len(plans), []
        for short in (True, False):
            reach = 6 if short else 24
            for at, (_, _, row, offset) in enumerate(plans):
                if (row < 24) == short:
                    letter = decoder.table(self.table(row, offset))
                    high[at] = letter - reach
                    if letter == 2 * reach + 1:
                        escaped.append(at)
        for at in sorted(escaped):
            high[at] = decoder.uniform(1 << 20) - (1 << 19)
        low = [decoder.uniform(1 << k) if k else 0 for k, _, _, _ in plans]
        return [(each << k) + plain + centre for each, plain, (k, centre, _, _) in zip(high, low, plans, strict=True)]

    def table(self, row: int, offset: int) -> list[int]:
        whole = self.counts[row][offset]
        middle = whole[18:31]
        return [*middle, 65536 - sum(middle)] if row < 24 else whole

    @staticmethod
    def plan(m: int, s: int) -> tuple[int, int, int, int]:
        k = max(0, -((8 - s) // 8))
        row = clip(s - 8 * k, -32, 8) + 32
        offset = (m & 7) if k == 0 else ((m & 7) + 4) >> k
        return k, (m >> 3) - ((1 << k) >> 1 if k else 0), row, offset

    def laplace(self, group: int, phase: int, window: list[list[list[int]]]) -> Prediction:
        earlier = PHASES[:phase]
        here = PHASES[phase]
        places = [(v, u) for v in range(5) for u in range(5) if ((here[0] + v) % 2, (here[1] + u) % 2) in earlier]
        scales = []
        for plane in window:
            magnitude = (sum(abs(plane[v][u]) for v, u in places) + 90) // (len(places) + 2)
            x = magnitude * self.inverse // 64
            scales.append(-32 + sum(self.threshold(i) <= x for i in range(-32, 72)))
        return [0] * len(scales), scales

    @staticmethod
    def threshold(i: int) -> int:
        return int(4096 * 2 ** ((2 * i + 1) / 16)) + 1

    def context(self, tensors: dict[str, np.ndarray]) -> Predict:
        def predict(group: int, phase: int, window: list[list[list[int]]]) -> Prediction:
            part = {name: tensors[f"{4 * group + phase}.{name}"].astype(object) for name in (
                "window", "window_bias", "window_step", "middle", "middle_bias", "out", "out_bias"
            )}  # fmt: skip
            around = {25: 0, 9: 1, 1: 2}[len(part["window"]) // len(window)]
            inner = slice(around, 5 - around)
            v = np.array([value for plane in window for line in plane[inner] for value in line[inner]], object)
            h = [clip(t // 256, 0, 65536) for t in v @ part["window"] + part["window_bias"] + (self.index - 128) * part["window_step"]]
            h = [clip(t // 1024, 0, 65536) for t in np.array(h, object) @ part["middle"] + part["middle_bias"]]
            o = [t // 1024 for t in np.array(h, object) @ part["out"] + part["out_bias"]]
            half = len(o) // 2
            # clip(...) * I * 8 / 256, then + 2048, / 4096: exact rationals, one floor
            means = [int((Fraction(clip(t, -16384, 16384) * self.inverse * 8, 256) + 2048) // 4096) for t in o[:half]]
            above = (Fraction(self.index - 128, 4) + Fraction(1, 2)).__floor__()
            scales = [clip((t + 128) // 256 - above, -32, 72) for t in o[half:]]
            return means, scales

        return predict


def laplace_tables() -> np.ndarray:
    """The tables of the `laplace` profile."""
    tables = np.zeros((41, 8, 50), int)
    with localcontext() as context:
        context.prec = 40
        for s, o in np.ndindex(41, 8):
            spread = Decimal(2) ** (Decimal(s - 32) / 8) + Decimal("0.05")
            edges = [Decimal(2 * k - 1) / 2 - Decimal(o) / 8 for k in range(-24, 26)]
            tails = [(-abs(edge) / spread).exp() / 2 for edge in edges]
            below = [tail if edge < 0 else 1 - tail for edge, tail in zip(edges, tails, strict=True)]
            masses = [high - low for low, high in pairwise(below)] + [1 - below[-1] + below[0]]
            weights = [int(mass * 2**40) for mass in masses]
            counts = [1 + w * 65486 // sum(weights) for w in weights]
            counts[counts.index(max(counts))] += 65536 - sum(counts)
            tables[s, o] = counts
    return tables


LIKELY = [1, 231, 139, 138, 11, 215, 228, 253, 5, 18, 4, 237, 46, 3, 18, 255]


def bitmap(content: bytes, height: int, width: int) -> list[list[int]]:
    """That of the ground section."""
    decoder, rows = RangeDecoder(content), list[list[int]]()

    def at(y: int, x: int) -> int:
        return rows[y][x] if y >= 0 and 0 <= x < width else 1

    for y in range(height):
        rows.append([])
        for x in range(width):
            p = LIKELY[at(y, x - 1) + 2 * at(y - 1, x) + 4 * at(y - 1, x + 1) + 8 * at(y - 1, x - 1)]
            rows[y].append(decoder.table([65536 - 256 * p, 256 * p]))
    return rows


def all_around(flat: list[list[int]], y: int, x: int, *, before: int = 1, after: int = 1) -> bool:
    """Whether all positions from ``before`` rows and columns before to ``after`` after one are ground, or outside the picture."""
    height, width = len(flat), len(flat[0])
    near = ((v, u) for v in range(y - before, y + after + 1) for u in range(x - before, x + after + 1))
    return all(flat[v][u] for v, u in near if 0 <= v < height and 0 <= u < width)


@pytest.mark.parametrize("profile", ["laplace", "context"])
@pytest.mark.parametrize("version", [5, 6])
def test_flat_ground_is_read_as_the_page_says(small_model: Path, profile: str, version: int) -> None:
    folder = small_model if profile == "laplace" else BUNDLED_MODEL
    codec = Codec(folder, read_manifest(folder))
    latent = np.random.default_rng(1).laplace(scale=0.8, size=codec.latent_shape(150, 180)).astype(np.float32)
    mask = np.zeros(latent.shape[1:], bool)
    mask[1:-2, 1:] = True
    latent[:, mask] = np.linspace(-1, 1, latent.shape[0])[:, None]
    if version == 6:
        content = container.write(codec.encode(latent, Frame(150, 180, ground=Ground(mask, (1, 2, 3))), 130))
        # magic and version, identities, varints for 150 and 180, method, flags, step index, sections
        assert content[:4] == b"SDC\x06" and content[12:20] == bytes([150, 1, 180, 1, 0, 0, 130, 2])
        sections = container.parse(content, 1 << 20).sections
        assert sections[3][:3] == bytes([1, 2, 3])
        flat = bitmap(sections[3][3:], *mask.shape)
        inside = [(y, x) for y, x in np.ndindex(mask.shape) if flat[y][x] and all_around(flat, y, x)]
    else:
        sections = {0: codec.entropy.encode(codec.quantise(latent, 130), 130, mask), 2: write_mask(mask)}
        flat = bitmap(sections[2], *mask.shape)
        inside = [(y, x) for y, x in np.ndindex(mask.shape) if flat[y][x]]
    assert (np.array(flat) == mask).all()
    assert len(inside) > 20
    if profile == "laplace":
        reader, predict = (reader := Reader([4], laplace_tables(), 130)), reader.laplace
    else:
        tensors = load_file(BUNDLED_MODEL / "entropy.safetensors")
        coarsest = json.loads((BUNDLED_MODEL / "sdc.json").read_text())["entropy"]["coarsest"]
        reader = Reader(tensors["group_sizes"].tolist(), tensors["counts"], 130, coarsest)
        predict = reader.context(tensors)
    assert (reader.read(sections[0], *latent.shape, predict, inside) == codec.quantise(latent, 130)).all()


def test_ground_gets_its_colour_as_the_page_says() -> None:
    f, rng = 8, np.random.default_rng(1)
    mask = rng.random((5, 6)) < 0.8
    flat, colour = mask.astype(int).tolist(), (255, 250, 3)
    decoded = rng.integers(0, 256, (5 * f - 3, 6 * f - 5, 3)).astype(np.uint8)
    expected = decoded.astype(int)
    for y, x in zip(*np.nonzero(mask), strict=True):
        weight = {
            (v, u): all_around(flat, y + v, x + u, before=1, after=0) for v in (0, 1) for u in (0, 1)
        }  # of the corner above and to the left of position (y + v, x + u)
        for i in range(min(f, len(decoded) - y * f)):
            for j in range(min(f, decoded.shape[1] - x * f)):
                ways = {0: 2 * f - 2 * i - 1, 1: 2 * i + 1}, {0: 2 * f - 2 * j - 1, 1: 2 * j + 1}
                s = sum(weight[v, u] * ways[0][v] * ways[1][u] for v, u in weight)
                pixel = expected[y * f + i, x * f + j]
                pixel[:] = [(int(p) * (4 * f * f - s) + c * s + 2 * f * f) // (4 * f * f) for p, c in zip(pixel, colour, strict=True)]
    assert (lay(decoded, mask, colour, f) == expected).all()


def test_a_grey_file_is_read_as_the_page_says(small_model: Path) -> None:
    codec = Codec(small_model, read_manifest(small_model))
    latent = np.random.default_rng(1).normal(size=codec.latent_shape(75, 52)).astype(np.float32)
    content = container.write(codec.encode(latent, Frame(75, 52, grey=True), 120))
    assert content[:4] == b"SDC\x06" and content[12:17] == bytes([75, 52, 0, 8, 120])
    decoded = np.random.default_rng(2).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    red, green, blue = np.moveaxis(decoded.astype(int), 2, 0)
    assert (greyed(decoded) == ((red + green + blue + 1) // 3)[..., None]).all()


@pytest.mark.parametrize("step_index", [20, 90, 128, 170])
def test_the_laplace_profile(small_model: Path, step_index: int) -> None:
    codec = Codec(small_model, read_manifest(small_model))
    latent = np.random.default_rng(step_index).laplace(scale=2, size=codec.latent_shape(75, 52)).astype(np.float32)
    width, height, index, payload = header(container.write(codec.encode(latent, Frame(75, 52), step_index)))
    assert (width, height, index) == (75, 52, step_index)
    reader = Reader([4], laplace_tables(), index)
    read = reader.read(payload, *latent.shape, reader.laplace)
    assert (read == quantise(latent, step_index)).all()


@pytest.mark.parametrize(("height", "width"), [(132, 132), (1, 8194)])
def test_a_chunk_is_whole_rows(height: int, width: int) -> None:
    """A pass over 66 rows of 66 is cut after 62 rows and not inside the next; one row of 4,097 is not cut."""
    symbols = quantise(np.random.default_rng(1).laplace(scale=2, size=(1, height, width)).astype(np.float32), 110)
    payload = EntropyCoder(LaplacePredictor(1, laplace_counts())).encode(symbols, 110)
    reader = Reader([1], laplace_tables(), 110)
    assert (reader.read(payload, 1, height, width, reader.laplace) == symbols).all()


@pytest.mark.parametrize("step_index", [40, 110, 130])
def test_the_bundled_profile(step_index: int) -> None:
    codec = Codec(BUNDLED_MODEL, read_manifest(BUNDLED_MODEL))
    latent = np.random.default_rng(step_index).laplace(scale=0.8, size=codec.latent_shape(75, 52)).astype(np.float32)
    _, _, index, payload = header(container.write(codec.encode(latent, Frame(75, 52), step_index)))
    tensors = load_file(BUNDLED_MODEL / "entropy.safetensors")
    coarsest = json.loads((BUNDLED_MODEL / "sdc.json").read_text())["entropy"]["coarsest"]
    reader = Reader(tensors["group_sizes"].tolist(), tensors["counts"], index, coarsest)
    read = reader.read(payload, *latent.shape, reader.context(tensors))
    sent = np.repeat([index <= last for last in coarsest], tensors["group_sizes"])
    assert (read[sent] == quantise(latent, step_index)[sent]).all() and not read[~sent].any()


def test_a_dithered_file_is_read_as_the_page_says(small_model: Path) -> None:
    codec = Codec(small_model, read_manifest(small_model))
    latent = np.random.default_rng(1).normal(size=codec.latent_shape(75, 52)).astype(np.float32)
    content = container.write(codec.encode(latent, Frame(75, 52, seed=0xDEADBEEF), 120))
    # magic and version, identities, varints of one byte for 75 and 52, method, flags, step index, seed
    assert content[:4] == b"SDC\x03" and content[12:17] == bytes([75, 52, 0, 2, 120])
    seed = struct.unpack("<I", content[17:21])[0]
    symbols = codec.decode_symbols(container.parse(content, 1 << 20)).ravel().tolist()
    values = []
    for n, q in enumerate(symbols):
        x = (seed * 2**32 + n + 1) * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
        values.append((q + ((x >> 56) + 0.5) / 256 - 0.5) * 2 ** ((120 - 128) / 32))
    assert codec.decode(container.parse(content, 1 << 20)).ravel() == pytest.approx(values, rel=1e-5, abs=1e-5)


def test_a_picture_that_was_coded_smaller_is_read_as_the_page_says(small_model: Path) -> None:
    codec = Codec(small_model, read_manifest(small_model))
    coded_width, coded_height = -(-75 * 6 // 16), -(-52 * 6 // 16)
    latent = np.random.default_rng(1).normal(size=codec.latent_shape(coded_width, coded_height)).astype(np.float32)
    content = container.write(codec.encode(latent, Frame(75, 52, scale=6), 120))
    # magic and version, identities, varints of one byte for 75 and 52, method, flags, step index, scale
    assert content[:4] == b"SDC\x04" and content[12:18] == bytes([75, 52, 0, 4, 120, 6])
    blob = container.parse(content, 1 << 20)
    assert blob.coded_size == (coded_width, coded_height) == (29, 20)
    assert (codec.decode_symbols(blob) == quantise(latent, 120)).all()


def test_a_palette_is_read_as_the_page_says(small_model: Path) -> None:
    codec = Codec(small_model, read_manifest(small_model))
    latent = np.random.default_rng(1).normal(size=codec.latent_shape(75, 52)).astype(np.float32)
    content = container.write(codec.encode_palette(latent, Frame(75, 52)))
    assert content[:4] == b"SDC\x03" and content[12:16] == bytes([75, 52, 1, 0])
    height, width = latent.shape[1:]
    section = zlib.decompress(container.parse(content, 1 << 20).sections[container.LATENT])
    assert len(section) == 1024 + height * width
    read = codec.decode(container.parse(content, 1 << 20))
    for y, x, c in ((0, 0, 0), (3, 5, 1), (height - 1, width - 1, 3)):
        colour = section[1024 + y * width + x]
        assert read[c, y, x] == pytest.approx((section[4 * colour + c] - 127.5) * 0.18215**2, rel=1e-5)
