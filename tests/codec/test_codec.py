import json
import math
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.codec import container, palette
from service.codec.codec import Codec, Frame
from service.codec.container import Tiling
from service.codec.entropy import EntropyCoder
from service.codec.ground import Ground, write_mask
from service.codec.methods import PALETTE as palette_method
from service.codec.profile import load_profile
from service.codec.steps import dequantise, dither, step_size
from service.errors import BadBlob, BadModel, CorruptBlob, MethodUnavailable, SizeUnreachable, TooManyPixels, WrongModel
from service.manifest import read_manifest
from service.settings import BUNDLED_MODEL


@pytest.fixture(scope="module", params=["small", "bundled"])
def codec(request: pytest.FixtureRequest, small_model: Path) -> Codec:
    folder = small_model if request.param == "small" else BUNDLED_MODEL
    return Codec(folder, read_manifest(folder))


def latent_for(codec: Codec, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(2).laplace(scale=0.6, size=codec.latent_shape(width, height)).astype(np.float32)


def test_a_blob_comes_back(codec: Codec) -> None:
    latent = latent_for(codec, 203, 117)
    blob = codec.encode(latent, Frame(203, 117, b"alpha", Tiling(1024, 128)), 130)
    again = container.parse(container.write(blob), 1 << 20)
    assert again == blob
    assert (codec.decode_symbols(again) == codec.quantise(latent, 130)).all()


def on_white(codec: Codec, width: int, height: int) -> tuple[np.ndarray, Frame]:
    """A latent of a picture whose left half is white, much the same at each of its positions."""
    latent = latent_for(codec, width, height)
    mask = np.zeros(latent.shape[1:], bool)
    mask[:, : mask.shape[1] // 2] = True
    noise = np.random.default_rng(1).normal(scale=0.01, size=(len(latent), int(mask.sum())))
    latent[:, mask] = np.linspace(-1, 1, len(latent))[:, None] + noise
    return latent, Frame(width, height, ground=Ground(mask, (255, 255, 255)))


def test_flat_ground_is_told_apart(codec: Codec) -> None:
    latent, frame = on_white(codec, 400, 310)
    assert frame.ground is not None
    inside = frame.ground.inside
    assert inside is not None
    blob = codec.encode(latent, frame, 130)
    again = container.parse(container.write(blob), 1 << 20)
    assert (again.version, set(again.sections)) == (6, {container.LATENT, container.GROUND})
    read, ground = codec.decode_all(again)
    assert ground is not None
    assert (ground.mask == frame.ground.mask).all()
    assert ground.colour == (255, 255, 255)
    symbols, sent = codec.decode_symbols(again), codec.quantise(latent, 130)
    assert (symbols[:, ~inside] == sent[:, ~inside]).all()
    median = codec.quantise(np.median(latent[:, inside], axis=1)[:, None, None], 130)[:, 0]
    assert (symbols[:, inside] == median).all()
    assert (read == dequantise(symbols, 130)).all()
    assert len(again.sections[container.LATENT]) < 0.8 * len(codec.entropy.encode(sent, 130))
    plain = codec.encode(latent_for(codec, 400, 310), Frame(400, 310), 130)
    assert (plain.version, set(plain.sections)) == (2, {container.LATENT})


def test_ground_without_a_colour_is_read(codec: Codec) -> None:
    """As version 5 wrote it: all of its positions are like the first."""
    latent, frame = on_white(codec, 400, 310)
    assert frame.ground is not None
    mask = frame.ground.mask
    symbols = codec.quantise(latent, 130)
    symbols[:, mask] = symbols[:, 0, 0, None]
    sections = {container.LATENT: codec.entropy.encode(symbols, 130, mask), container.BARE_GROUND: write_mask(mask)}
    blob = replace(codec.encode(latent, Frame(400, 310), 130), sections=sections, version=0)
    assert blob.version == 5
    read, ground = codec.decode_all(container.parse(container.write(blob), 1 << 20))
    assert (read == dequantise(symbols, 130)).all()
    assert ground is not None
    assert ground.colour is None


def test_sizes_are_met_with_flat_ground_too(codec: Codec) -> None:
    latent, frame = on_white(codec, 400, 310)
    for max_bytes in (700, 2000, 6000):
        blob = codec.encode_within(latent, frame, max_bytes)
        assert container.GROUND in blob.sections
        size = len(container.write(blob))
        assert size <= max_bytes
        assert size > 0.7 * max_bytes or not blob.step_index


def test_a_ground_that_no_writer_makes(codec: Codec) -> None:
    blob = codec.encode(*on_white(codec, 400, 310), 130)
    odd = np.zeros(codec.latent_shape(400, 310)[1:], bool)
    odd[1::2] = True
    bare = {container.LATENT: blob.sections[container.LATENT], container.BARE_GROUND: write_mask(odd)}
    with pytest.raises(CorruptBlob, match="no position"):
        codec.decode(replace(blob, sections=bare))
    with pytest.raises(CorruptBlob, match="no palette and no dithered file"):
        codec.decode(replace(blob, method=palette_method))
    with pytest.raises(CorruptBlob, match="no palette and no dithered file"):
        codec.decode(replace(blob, seed=1, sections=bare))


def test_a_file_of_version_1_is_read() -> None:
    """Before there were short tables: the same integers in other bytes."""
    codec = Codec(BUNDLED_MODEL, read_manifest(BUNDLED_MODEL))
    latent = latent_for(codec, 203, 117)
    blob = codec.encode(latent, Frame(203, 117), 150)
    coder = EntropyCoder(load_profile(BUNDLED_MODEL, codec.manifest).predictor, short_tables=False)
    payload = coder.encode(codec.quantise(latent, 150), 150)
    assert payload != blob.sections[container.LATENT]
    earlier = container.parse(container.write(replace(blob, version=1, sections={container.LATENT: payload})), 1 << 20)
    assert (codec.decode_symbols(earlier) == codec.quantise(latent, 150)).all()


@pytest.mark.parametrize("max_bytes", [300, 1000, 2000, 20_000])
def test_max_bytes_is_met_to_the_byte_and_used(codec: Codec, max_bytes: int) -> None:
    latent = latent_for(codec, 160, 160)
    try:
        blob = codec.encode_within(latent, Frame(160, 160), max_bytes)
    except SizeUnreachable as error:
        assert error.best_bytes > max_bytes
        return
    size = len(container.write(blob))
    assert size <= max_bytes
    if blob.step_index > 0:
        finer = len(container.write(codec.encode(latent, Frame(160, 160), blob.step_index - 1)))
        assert finer > max_bytes or finer - size < 12  # the estimate may be a few bytes off


def test_an_unreachable_size_says_what_can_be_had(codec: Codec) -> None:
    latent = latent_for(codec, 256, 256)
    with pytest.raises(SizeUnreachable) as caught:
        codec.encode_within(latent, Frame(256, 256), 20)
    blob = codec.encode_within(latent, Frame(256, 256), caught.value.best_bytes)
    assert len(container.write(blob)) == caught.value.best_bytes
    assert len(container.write(codec.encode(latent, Frame(256, 256), 255))) == caught.value.best_bytes


def test_alpha_counts_towards_the_size(codec: Codec) -> None:
    latent = latent_for(codec, 160, 160)
    assert len(container.write(codec.encode_within(latent, Frame(160, 160, bytes(500)), 2500))) <= 2500


def test_another_profile_is_refused_by_name(codec: Codec) -> None:
    blob = codec.encode(latent_for(codec, 64, 64), Frame(64, 64), 128)
    with pytest.raises(WrongModel, match="deadbeef"):
        codec.decode(replace(blob, code_identity=bytes.fromhex("deadbeef")))
    with pytest.raises(CorruptBlob):
        codec.decode(replace(blob, method=9))


def test_the_code_identity_changes_with_what_the_integers_depend_on(small_model: Path, tmp_path: Path) -> None:
    before = Codec(small_model, read_manifest(small_model)).code_identity
    folder = tmp_path / "other"
    shutil.copytree(small_model, folder)
    manifest = json.loads((folder / "sdc.json").read_text())
    manifest["latent_std"][0] = 0.31
    (folder / "sdc.json").write_text(json.dumps(manifest))
    assert Codec(folder, read_manifest(folder)).code_identity != before


def test_a_damaged_profile_is_refused(tmp_path: Path) -> None:
    for name in ("sdc.json", "entropy.safetensors"):
        shutil.copy(BUNDLED_MODEL / name, tmp_path)
    (tmp_path / "entropy.safetensors").write_bytes(b"not tensors")
    with pytest.raises(BadModel):
        Codec(tmp_path, read_manifest(tmp_path))


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("another number of groups", {"entropy": {"kind": "context", "file": "entropy.safetensors", "coarsest": [255, 90]}}),
        ("no group of .* ends with the channels", {"widens": {"version": "0", "latent_channels": 5}}),
        ("an earlier version with fewer", {"widens": {"version": "0", "latent_channels": 512}}),
        ("an earlier version with fewer", {"version": "0", "widens": {"version": "0", "latent_channels": 4}}),
    ],
)
def test_a_manifest_that_does_not_fit_its_profile_is_refused(tmp_path: Path, said: str, change: dict[str, object]) -> None:
    for name in ("sdc.json", "entropy.safetensors"):
        shutil.copy(BUNDLED_MODEL / name, tmp_path)
    (tmp_path / "sdc.json").write_text(json.dumps(json.loads((tmp_path / "sdc.json").read_text()) | change))
    with pytest.raises(BadModel, match=said):
        Codec(tmp_path, read_manifest(tmp_path))


def test_an_unknown_key_in_the_manifest_is_refused(tmp_path: Path) -> None:
    manifest = json.loads((BUNDLED_MODEL / "sdc.json").read_text()) | {"surprise": 1}
    (tmp_path / "sdc.json").write_text(json.dumps(manifest))
    with pytest.raises(BadModel, match="surprise"):
        read_manifest(tmp_path)


def test_damaged_files_with_a_sound_checksum(codec: Codec) -> None:
    """Changed at random, the checksum made to fit: integers of the claimed size or a clear error, never anything else."""
    rng = random.Random(11)
    whole = container.write(codec.encode(latent_for(codec, 60, 45), Frame(60, 45), 100))
    outcomes = {"error": 0, "integers": 0}
    for _ in range(1500):
        body = bytearray(whole[:-4])
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(12, len(body))] = rng.randrange(256)
        if rng.random() < 0.2:
            del body[rng.randrange(12, len(body)) :]
        content = bytes(body) + zlib.crc32(body).to_bytes(4, "little")
        try:
            blob = container.parse(content, 1 << 14)
            symbols = codec.decode_symbols(blob)
        except (BadBlob, TooManyPixels):
            outcomes["error"] += 1
        else:
            outcomes["integers"] += 1
            assert symbols.shape == codec.latent_shape(blob.width, blob.height)
    assert min(outcomes.values()) > 100


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.window", lambda a: a.astype(np.int64)),
        ("0.window", lambda a: a[:-1]),
        ("3.middle", lambda a: a[:5]),
        ("3.middle", lambda a: a.astype(np.int32)),
        ("5.out", lambda a: a[:, :1]),
        ("5.out_bias", lambda a: a[:1]),
        ("counts", lambda a: a.astype(np.float32) + 0.4),
        ("counts", lambda a: a * 0),
        ("group_sizes", lambda a: a[0]),
        ("group_sizes", lambda a: a[:-1]),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Nothing unusual may reach the arithmetic: it is exact only for what is checked here."""
    tensors = load_file(BUNDLED_MODEL / "entropy.safetensors")
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, tmp_path / "entropy.safetensors")
    with pytest.raises(BadModel):
        Codec(tmp_path, read_manifest(BUNDLED_MODEL))


def test_dither_by_hand() -> None:
    """splitmix64 as published: its first output for seed 0 is e220a8397b1dcdaf; the n-th is that of counter n."""
    offsets = dither(0, (2, 1, 2))
    first_bytes = [0xE2, 0x6E, 0x06, 0xF8]  # of e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f, f88bb8a8724c81ec
    assert offsets.flatten().tolist() == [(byte + 0.5) / 256 - 0.5 for byte in first_bytes]
    assert (dither(1, (4, 9, 9)) != dither(2, (4, 9, 9))).any()
    many = dither(5, (4, 64, 64))
    assert abs(float(many.mean())) < 0.01 and float(many.std()) == pytest.approx(12**-0.5, rel=0.02)


def test_dithered_error_is_noise_whatever_the_latent(codec: Codec) -> None:
    """Where plain rounding gives all zeros, the dithered error is uniform and tells nothing of the latent."""
    latent = 0.3 * np.sin(np.arange(math.prod(codec.latent_shape(256, 256))) / 7).astype(np.float32).reshape(codec.latent_shape(256, 256))
    index = 1 + min(codec.manifest.entropy.coarsest, default=127)  # not all channels are sent at it, where some are not
    plain = codec.decode(codec.encode(latent, Frame(256, 256), index))
    assert (plain == 0).all()
    blob = codec.encode(latent, Frame(256, 256, seed=77), index)
    read = codec.decode(container.parse(container.write(blob), 1 << 20))
    sent = codec.entropy.sent(index)
    error = (read - latent)[sent] / step_size(index)
    assert np.abs(error).max() <= 0.5 + 1e-6
    assert float(error.std()) == pytest.approx(12**-0.5, rel=0.05)
    assert abs(np.corrcoef(error.ravel(), latent[sent].ravel())[0, 1]) < 0.03
    assert not read[~sent].any(), "nor is there noise where nothing was sent"


def test_dithered_sizes_are_met_too(codec: Codec) -> None:
    latent = latent_for(codec, 160, 160)
    blob = codec.encode_within(latent, Frame(160, 160, seed=3), 4000)
    assert len(container.write(blob)) <= 4000
    assert blob.seed == 3


def test_palette_is_for_four_channels(small_model: Path) -> None:
    bundled = Codec(BUNDLED_MODEL, read_manifest(BUNDLED_MODEL))
    with pytest.raises(MethodUnavailable, match="4 channels"):
        bundled.encode_palette(latent_for(bundled, 64, 64), Frame(64, 64))
    small = Codec(small_model, read_manifest(small_model))
    blob = small.encode_palette(latent_for(small, 160, 120), Frame(160, 120))
    whole = container.write(blob)
    assert (small.decode(container.parse(whole, 1 << 20)) == palette.decode(blob.sections[container.LATENT], 15, 20)).all()
    # the step told is that of a uniform quantiser with the same error
    error = float(((small.decode(blob) - latent_for(small, 160, 120)) ** 2).mean())
    assert step_size(blob.step_index) ** 2 / 12 == pytest.approx(error, rel=0.05)
    assert small.encode_palette(latent_for(small, 160, 120), Frame(160, 120), len(whole)) == blob
    with pytest.raises(SizeUnreachable) as caught:
        small.encode_palette(latent_for(small, 160, 120), Frame(160, 120), len(whole) - 1)
    assert caught.value.best_bytes == len(whole)
    for wrong in (replace(blob, seed=1), replace(blob, method=2)):
        with pytest.raises(CorruptBlob):
            small.check(wrong)
