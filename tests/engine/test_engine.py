import asyncio
import gc
import json
import re
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import Mock

import diffusers
import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file

from service.batching.batcher import Batcher
from service.checkpoints.pulling import pull
from service.engine.device import pick_device, pick_dtype
from service.engine.engine import Engine, Latents, Pixels
from service.errors import BadModel, DeviceFailed, DeviceLost, NoDevice, OutOfMemory
from service.settings import BUNDLED_MODEL
from tests.checkpoints.conftest import make_checkpoint
from tests.conftest import build_model, make_picture, psnr

KINDS = ("residual", "kl", "tiny", "dc")


@pytest.fixture(scope="module")
def bundled() -> Engine:
    return Engine(BUNDLED_MODEL)


@pytest.mark.parametrize("kind", KINDS)
def test_one_implementation_for_every_class(kind: str, model_of: Callable[[str], Path]) -> None:
    engine = Engine(model_of(kind), dtype="float32")
    factor = engine.manifest.downscale
    pixels = np.stack([make_picture(48, 64, seed) for seed in range(2)])
    latents = engine.encode(pixels)
    assert latents.shape == (2, 4, 48 // factor, 64 // factor)
    assert latents.dtype == np.float32
    steps = np.array([0.5, 2.0], np.float32)
    restored = engine.restore(latents, steps, 1)
    assert restored.shape == latents.shape
    decoded = engine.decode(restored)
    assert decoded.shape == pixels.shape
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_restoring_stays_in_the_cell_that_was_sent(small_model: Path, steps: int) -> None:
    engine = Engine(small_model, dtype="float32")
    sizes = np.array([0.3, 1.7], np.float32)
    sent = np.random.default_rng(0).normal(size=(2, 4, 5, 7)).astype(np.float32)
    restored = engine.restore(sent, sizes, steps)
    assert (np.abs(restored - sent) <= sizes[:, None, None, None] / 2 + 1e-5).all()
    assert np.abs(restored - sent).max() > 0


def test_no_steps_is_the_latent_itself(small_model: Path) -> None:
    latents = np.ones((1, 4, 3, 3), np.float32)
    assert Engine(small_model).restore(latents, np.ones(1, np.float32), 0) is latents


@pytest.mark.parametrize(("dtype", "least"), [("float32", 50.0), ("bfloat16", 40.0)])
def test_company_does_not_change_pixels(dtype: str, least: float) -> None:
    """The same latent alone and in a batch: 50 dB apart at worst in fp32, 40 dB in bf16."""
    engine = Engine(BUNDLED_MODEL, dtype=dtype)
    pixels = np.stack([make_picture(96, 64, seed) for seed in range(4)])
    sizes = np.full(4, 0.4, np.float32)
    latents = engine.encode(pixels)
    together = engine.decode(engine.restore(latents, sizes, 1))
    for index in range(4):
        alone = engine.decode(engine.restore(latents[index : index + 1], sizes[:1], 1))[0]
        assert psnr(alone, together[index]) >= least


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def test_what_is_begun_may_be_waited_for_later(model_of: Callable[[str], Path], device: str) -> None:
    """Batches begun one behind the other, and waited for in any order, give what each gives by itself."""
    engine = Engine(model_of("kl"), device=device, dtype="float32")
    batches = [[make_picture(64, 48, 10 * batch + item) for item in range(2)] for batch in range(6)]
    sizes = np.array([0.3, 1.7], np.float32)
    with engine.warming():
        latents = [engine.encode(np.stack(batch)) for batch in batches]
        shown = [engine.decode(engine.restore(each, sizes, 2)) for each in latents]
    begun = [(engine.begin_encode(batch), engine.begin_render(list(each), sizes, 2)) for batch, each in zip(batches, latents, strict=True)]
    for (encode, render), expected, picture in reversed(list(zip(begun, latents, shown, strict=True))):
        found, seconds = render()
        assert np.abs(found.astype(int) - picture).max() <= 1
        assert list(seconds) == ["unet", "decode"] and all(taken > 0 for taken in seconds.values())
        found, seconds = encode()
        assert np.abs(found - expected).max() < 1e-4
        assert list(seconds) == ["encode"]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 272), (48, 112)])
def test_the_bundled_model_takes_any_multiple_of_its_downscale(bundled: Engine, height: int, width: int) -> None:
    pixels = make_picture(height, width)[None]
    latents = bundled.encode(pixels)
    assert bundled.decode(bundled.restore(latents, np.full(1, 0.1, np.float32), 1)).shape == pixels.shape


def test_not_a_number_is_computed_again(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN as uint8 is a silent black picture: that item, and only that one, is run again in fp32."""
    engine = Engine(small_model, dtype="float32")
    latents = engine.encode(np.stack([make_picture(32, 32, seed) for seed in range(3)]))
    expected = engine.decode(latents)
    real = engine._networks.decode
    calls = []

    def poisoned(latent: torch.Tensor) -> torch.Tensor:
        calls.append(len(latent))
        result = real(latent)
        result[1] = float("nan")
        return result

    monkeypatch.setattr(engine._networks, "decode", poisoned)
    before = REGISTRY.get_sample_value("sdc_nonfinite_total") or 0
    assert psnr(engine.decode(latents), expected) > 60
    assert calls == [3]
    assert REGISTRY.get_sample_value("sdc_nonfinite_total") == before + 1


def test_not_a_number_of_the_unet_is_computed_again(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restored and decoded anew, with its own step, and its neighbours as they were."""
    engine = Engine(small_model, dtype="float32")
    latents = engine.encode(np.stack([make_picture(32, 32, seed) for seed in range(3)]))
    sizes = np.array([0.1, 1.0, 3.0], np.float32)
    expected = engine.decode(engine.restore(latents, sizes, 2))
    real = engine._networks.predict

    def poisoned(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        result = real(noisy, timesteps)
        result[2] = float("nan")
        return result

    monkeypatch.setattr(engine._networks, "predict", poisoned)
    finish = engine.begin_render(latents, sizes, 2)
    before = REGISTRY.get_sample_value("sdc_nonfinite_total") or 0
    found, _ = finish()
    assert psnr(found, expected) > 60
    assert REGISTRY.get_sample_value("sdc_nonfinite_total") == before + 1


def test_a_latent_that_cannot_be_decoded_is_an_error(small_model: Path) -> None:
    engine = Engine(small_model)
    with pytest.raises(DeviceFailed):
        engine.decode(np.full((1, 4, 2, 2), np.nan, np.float32))


def test_nothing_is_kept_of_a_batch_that_did_not_fit(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else its tensors take the place of the smaller batches that it is tried again in."""
    engine, held, alive = Engine(small_model, dtype="float32"), [], []
    whole = engine._networks.decode

    def decode(latents: torch.Tensor) -> torch.Tensor:
        alive.append([tensor() is not None for tensor in held])
        result = whole(latents)
        held.append(weakref.ref(result))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    def render(items: Sequence[Latents]) -> Callable[[], Sequence[Pixels]]:
        finish = engine.begin_render(items, np.zeros(len(items), np.float32), 0)
        return lambda: list(finish()[0])

    monkeypatch.setattr(engine._networks, "decode", decode)
    latents = np.random.default_rng(0).normal(size=(4, 4, 2, 2)).astype(np.float32)

    async def main() -> list[Pixels]:
        batcher = Batcher({"render": render}, 4, 1000)
        try:
            first = asyncio.create_task(batcher.submit("render", "other", latents[0], 1))
            found = await asyncio.gather(*(batcher.submit("render", "s", latent, 1) for latent in latents))
            await first
            return found
        finally:
            await batcher.close()

    gc.disable()
    try:
        found = asyncio.run(main())
    finally:
        gc.enable()
    assert (np.stack(found) == np.concatenate([engine.decode(latents[:2]), engine.decode(latents[2:])])).all()
    assert len(alive) == 6
    assert not any(map(any, alive))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("ncnn: not enough memory"),
        MemoryError("Unable to allocate 9. GiB for an array"),
    ],
)
def test_words_for_too_little_memory(small_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    engine = Engine(small_model)
    monkeypatch.setattr(engine._networks, "decode", Mock(side_effect=error))
    with pytest.raises(OutOfMemory) as told:
        engine.decode(np.zeros((1, 4, 2, 2), np.float32))
    assert told.value.__context__ is None


def test_too_little_memory_for_a_tensor_is_known_by_torchs_own_words(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(small_model)
    monkeypatch.setattr(engine._networks, "decode", lambda _: torch.empty(1 << 46))
    with pytest.raises(OutOfMemory):
        engine.decode(np.zeros((1, 4, 2, 2), np.float32))


def test_a_device_that_failed_is_asked_whether_it_is_still_there(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, latent = Engine(small_model), np.zeros((1, 4, 2, 2), np.float32)
    illegal = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(engine._networks, "decode", Mock(side_effect=illegal))
    with pytest.raises(RuntimeError, match="illegal"):  # of a processor nothing is lost
        engine.decode(latent)
    asked = Mock()
    monkeypatch.setattr(torch.cuda, "synchronize", asked)
    monkeypatch.setattr(engine, "device", torch.device("cuda:0"))
    with pytest.raises(RuntimeError, match="illegal"):
        engine._told(Mock(side_effect=illegal))
    asked.side_effect = illegal
    with pytest.raises(DeviceLost):
        engine._told(Mock(side_effect=illegal))


@pytest.mark.parametrize(
    ("wanted", "gpus", "found"), [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")]
)
def test_the_device_that_is_there(monkeypatch: pytest.MonkeyPatch, wanted: str, gpus: int, found: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device(wanted) == torch.device(found)


@pytest.mark.parametrize(
    ("wanted", "gpus", "told"), [("cuda", 0, "no GPU here"), ("cuda:1", 1, "1 GPU here"), ("cuda:2", 2, "2 GPUs here")]
)
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, wanted: str, gpus: int, told: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(NoDevice, match=f"SDC_DEVICE={wanted}: .* sees {told}"):
        pick_device(wanted)


def test_device_and_dtype() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_dtype(torch.device("cpu"), "float16") is torch.float16
    assert pick_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("missing", ["sdc.json", "vae/config.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_an_incomplete_folder_is_refused(small_model: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_model, folder)
    (folder / missing).unlink()
    with pytest.raises(BadModel):
        Engine(folder)


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    folder = build_model(tmp_path)
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"_class_name": "Evil"}))
    with pytest.raises(BadModel, match="AutoencoderKL"):
        Engine(folder)


def test_a_manifest_that_disagrees_with_its_networks_stops_the_start(tmp_path: Path) -> None:
    folder = build_model(tmp_path)
    manifest = json.loads((folder / "sdc.json").read_text())
    (folder / "sdc.json").write_text(json.dumps(manifest | {"downscale": 16}))
    with pytest.raises(BadModel, match="1/16"):
        Engine(folder).check(64, 64)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_pickled_weights_are_not_read(tmp_path: Path, part: str) -> None:
    folder = build_model(tmp_path)
    (folder / part / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / part / "diffusion_pytorch_model.bin")
    with pytest.raises(BadModel, match="pickled weights only"):
        Engine(folder)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_weights_that_are_not_all_there_stop_the_start(tmp_path: Path, part: str) -> None:
    """diffusers would make up what is missing, and warn."""
    folder = build_model(tmp_path)
    path = folder / part / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(BadModel, match=f"incomplete: 1 tensors.*{re.escape(name)}"):
        Engine(folder)
    save_file({**weights, name: torch.zeros(3, 3, 3)}, path, metadata={"format": "pt"})
    with pytest.raises(BadModel):
        Engine(folder)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadModel, match="cannot be loaded"):
        Engine(folder)


@pytest.mark.parametrize("shape", [None, (1, 77, 9), (77, 16)])
def test_a_wrong_prompt_stops_the_start(tmp_path: Path, checkpoint_model: Path, shape: tuple[int, ...] | None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint_model, folder)
    (folder / "empty_prompt.safetensors").unlink()
    if shape is not None:
        save_file({"embedding": torch.zeros(shape)}, folder / "empty_prompt.safetensors")
    with pytest.raises(BadModel, match="this U-Net wants"):
        Engine(folder)


@pytest.fixture(scope="module")
def checkpoint_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of Stable Diffusion's classes, small."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return pull(folder, str(make_checkpoint(folder / "sd")), name="small", told=lambda words: None)


def test_a_schedule_nobody_knows_stops_the_start(tmp_path: Path) -> None:
    folder = build_model(tmp_path)
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "flow"}))
    with pytest.raises(BadModel, match="flow"):
        Engine(folder)


def test_networks_that_do_not_run_stop_the_start(tmp_path: Path) -> None:
    """Here a U-Net that wants a class."""
    folder = build_model(tmp_path)
    unet = diffusers.UNet2DModel(
        in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, num_class_embeds=3,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    with pytest.raises(BadModel, match="cannot be run: class_labels"):
        Engine(folder, dtype="float32").check(64, 64)


@pytest.mark.parametrize("absent", ["beta_start", "beta_end", "beta_schedule"])
def test_a_schedule_without_betas_stops_the_start(tmp_path: Path, absent: str) -> None:
    """diffusers would take its own, which are nobody's."""
    folder = build_model(tmp_path)
    path = folder / "scheduler/scheduler_config.json"
    told = json.loads(path.read_text())
    del told[absent]
    path.write_text(json.dumps(told))
    with pytest.raises(BadModel, match="has no betas"):
        Engine(folder)
    path.write_text(json.dumps(told | {"trained_betas": [0.01] * 1000}))
    assert Engine(folder, dtype="float32")._networks.alphas[1] == pytest.approx(0.99**2)


def test_fp16_leaves_the_auto_encoder_in_fp32(checkpoint_model: Path) -> None:
    """Its activations go beyond what fp16 holds."""
    networks = Engine(checkpoint_model, dtype="float16")._networks
    assert {each.dtype for each in networks._vae.parameters()} == {torch.float32}
    assert {each.dtype for each in networks._unet.parameters()} == {torch.float16}
