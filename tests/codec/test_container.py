import random
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.codec import container
from service.codec.container import ALPHA, BARE_GROUND, GROUND, LATENT, Blob, Tiling, parse, write
from service.errors import BadBlob, CorruptBlob, NotABlob, TooManyPixels, UnknownVersion

LIMIT = 1 << 26
OPAQUE = Blob(b"code", b"modl", 512, 384, 0, 128, {LATENT: b"\x01\x02\x03"})


def resign(body: bytes) -> bytes:
    """The body with a checksum that fits it."""
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(("version", "checksum"), [(1, "940f9ea2"), (2, "d4a2e69b")])
def test_golden_bytes(version: int, checksum: str) -> None:
    """The layout of docs/FORMAT.md, to the byte; what was read is written as it was."""
    golden = f"5344430{version}" + "636f6465" + "6d6f646c" + "8004" + "8003" + "000080" + "01" + "0003" + "010203" + checksum
    assert write(replace(OPAQUE, version=version)).hex() == golden
    assert parse(bytes.fromhex(golden), LIMIT) == replace(OPAQUE, version=version)


def test_golden_bytes_of_version_3() -> None:
    """What version 2 cannot say: another method, and the seed of a dither."""
    palette = replace(OPAQUE, method=1, version=0)
    dithered = replace(OPAQUE, tiling=Tiling(512, 128), seed=0x01020304, version=0)
    assert (palette.version, dithered.version, replace(OPAQUE, version=0).version) == (3, 3, 2)
    start = "53444303" + "636f6465" + "6d6f646c" + "8004" + "8003"
    assert write(palette).hex() == start + "010080" + "01" + "0003" + "010203" + "57d2b59b"
    assert write(dithered).hex() == start + "000380" + "8004" + "8001" + "04030201" + "01" + "0003" + "010203" + "745ce617"
    for blob in (palette, dithered):
        assert parse(write(blob), LIMIT) == blob
        with pytest.raises(CorruptBlob, match="version 2"):
            parse(write(replace(blob, version=2)), LIMIT)


def test_golden_bytes_of_version_4() -> None:
    """What version 3 cannot say: that a picture was coded smaller than it is."""
    smaller = replace(OPAQUE, scale=6, version=0)
    everything = replace(OPAQUE, method=1, tiling=Tiling(512, 128), seed=0x01020304, scale=12, version=0)
    assert (smaller.version, smaller.coded_size) == (4, (192, 144))
    start = "53444304" + "636f6465" + "6d6f646c" + "8004" + "8003"
    assert write(smaller).hex() == start + "000480" + "06" + "01" + "0003" + "010203" + "46bd0782"
    assert write(everything).hex() == start + "010780" + "8004" + "8001" + "04030201" + "0c" + "01" + "0003" + "010203" + "7169e6f4"
    for blob in (smaller, everything):
        assert parse(write(blob), LIMIT) == blob
        for older in (2, 3):
            with pytest.raises(CorruptBlob, match=f"version {older}"):
                parse(write(replace(blob, version=older)), LIMIT)


def test_golden_bytes_of_version_5() -> None:
    """What version 4 cannot say: which of the positions are flat ground."""
    flat = replace(OPAQUE, sections={LATENT: b"\x01\x02\x03", BARE_GROUND: b"\x04\x05"}, version=0)
    assert flat.version == 5
    golden = "53444305" + "636f6465" + "6d6f646c" + "8004" + "8003" + "000080" + "02" + "0003" + "0202" + "010203" + "0405" + "fba8e2f9"
    assert write(flat).hex() == golden
    assert parse(write(flat), LIMIT) == flat
    for older in (1, 2, 3, 4):
        with pytest.raises(CorruptBlob, match=f"version {older}"):
            parse(write(replace(flat, version=older)), LIMIT)


def test_golden_bytes_of_version_6() -> None:
    """What version 5 cannot say: the colour of the flat ground, and that a picture has no colours."""
    flat = replace(OPAQUE, sections={LATENT: b"\x01\x02\x03", GROUND: b"\x04\x05"}, version=0)
    grey = replace(OPAQUE, grey=True, version=0)
    start = "53444306" + "636f6465" + "6d6f646c" + "8004" + "8003"
    assert write(flat).hex() == start + "000080" + "02" + "0003" + "0302" + "010203" + "0405" + "b74ec2ad"
    assert write(grey).hex() == start + "000880" + "01" + "0003" + "010203" + "612aa214"
    for blob in (flat, grey):
        assert (blob.version, parse(write(blob), LIMIT)) == (6, blob)
        for older in (1, 2, 3, 4, 5):
            with pytest.raises(CorruptBlob, match=f"version {older}"):
                parse(write(replace(blob, version=older)), LIMIT)


def test_two_grounds_are_refused() -> None:
    two = replace(OPAQUE, sections={LATENT: b"\x01", BARE_GROUND: b"\x02", GROUND: b"\x03"}, version=0)
    with pytest.raises(CorruptBlob, match="two grounds"):
        parse(write(two), LIMIT)


@pytest.mark.parametrize("scale", [0, 16, 17, 255])
def test_an_impossible_scale_is_refused(scale: int) -> None:
    body = bytearray(write(replace(OPAQUE, scale=6, version=0))[:-4])
    assert body[19] == 6
    body[19] = scale
    with pytest.raises(CorruptBlob, match=f"scale {scale}"):
        parse(resign(bytes(body)), LIMIT)


def test_opaque_overhead_is_at_most_32_bytes() -> None:
    for side, length in ((1, 10), (512, 5000), (16383, 100), (65535, 1 << 20)):
        blob = Blob(b"code", b"modl", side, min(side, LIMIT // side), 0, 0, {LATENT: bytes(length)})
        assert len(write(blob)) - length <= 32


blobs = st.builds(
    Blob,
    code_identity=st.binary(min_size=4, max_size=4),
    model_identity=st.binary(min_size=4, max_size=4),
    width=st.integers(1, 1000),
    height=st.integers(1, 65535),
    method=st.integers(0, 255),
    step_index=st.integers(0, 255),
    sections=st.one_of(
        st.fixed_dictionaries({LATENT: st.binary(max_size=300)}),
        st.fixed_dictionaries({LATENT: st.binary(max_size=300), ALPHA: st.binary(max_size=300)}),
        st.fixed_dictionaries({LATENT: st.binary(max_size=300), GROUND: st.binary(max_size=300)}),
    ),
    tiling=st.one_of(st.none(), st.builds(Tiling, st.integers(256, 65535), st.integers(0, 128))),
    seed=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    scale=st.integers(1, 16),
)


@given(blobs)
def test_what_is_written_is_read(blob: Blob) -> None:
    assert parse(write(blob), LIMIT) == blob


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", NotABlob),
        (b"GIF89a", NotABlob),
        (b"SDC", CorruptBlob),
        (b"SDC\x07" + bytes(40), UnknownVersion),
        (b"SDC\x00" + bytes(40), UnknownVersion),
        (write(OPAQUE)[:-1], CorruptBlob),
        (write(OPAQUE)[:-1] + b"\x00", CorruptBlob),
        (resign(write(OPAQUE)[:-4] + b"more"), CorruptBlob),
    ],
)
def test_damage_is_named(content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse(content, LIMIT)


def test_claimed_size_is_checked_before_anything_else_happens() -> None:
    with pytest.raises(TooManyPixels):
        parse(write(OPAQUE), 512 * 384 - 1)


def test_a_length_past_the_end_is_refused() -> None:
    body = bytearray(write(OPAQUE)[:-4])
    body[21] = 0x7F  # the latent's length
    with pytest.raises(CorruptBlob):
        parse(resign(bytes(body)), LIMIT)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_clear_error(content: bytes) -> None:
    for candidate in (content, b"SDC\x01" + content, resign(b"SDC\x01" + content)):
        try:
            parse(candidate, LIMIT)
        except (BadBlob, TooManyPixels):
            pass


def test_a_million_damaged_blobs() -> None:
    """Random, truncated and bit-flipped, half of them with a checksum that fits: a clear error or a sound blob, never anything else."""
    rng = random.Random(7)
    whole = write(Blob(b"code", b"modl", 300, 200, 0, 99, {LATENT: bytes(40), ALPHA: bytes(9), GROUND: bytes(5)}, Tiling(1024, 128), 7, 12))
    outcomes = {"error": 0, "sound": 0}
    for index in range(1_000_000):
        content = bytearray(whole)
        kind = index % 4
        if kind == 0:
            content = content[: rng.randrange(len(content))]
        elif kind == 1:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            content[rng.randrange(4, len(content))] = rng.randrange(256)
            content = bytearray(resign(bytes(content[:-4])))
        else:
            content = bytearray(resign(bytes(content[: rng.randrange(4, len(content))])))
        try:
            blob = parse(bytes(content), LIMIT)
        except (BadBlob, TooManyPixels):
            outcomes["error"] += 1
        else:
            outcomes["sound"] += 1
            assert sum(map(len, blob.sections.values())) <= len(content)
            assert blob.width * blob.height <= LIMIT
    assert outcomes["error"] > 500_000
    assert outcomes["sound"] > 1_000
    assert container.VERSION == 6


@pytest.mark.parametrize(("side", "margin", "sound"), [(256, 128, True), (255, 100, False), (256, 129, False), (65535, 32767, True)])
def test_an_impossible_tiling_is_refused(side: int, margin: int, sound: bool) -> None:
    content = write(replace(OPAQUE, tiling=Tiling(side, margin), version=0))
    if sound:
        assert parse(content, LIMIT).tiling == Tiling(side, margin)
        return
    with pytest.raises(CorruptBlob, match=f"tiling: side {side}, margin {margin}"):
        parse(content, LIMIT)
