"""Files of other models: which are read, when their networks are loaded, and what happens when that takes long or fails."""

import asyncio
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client import REGISTRY
from safetensors.numpy import load_file

from service import loading
from service.app import create_app
from service.errors import BadModel, DeadlineMissed, DeviceFailed, MethodUnavailable, WrongModel
from service.options import CompressOptions, RenderOptions
from service.pipeline import Compressed, Pipeline
from service.settings import BUNDLED_MODEL, Settings
from tests.conftest import build_model, make_picture, png
from tests.test_pipeline import run

PHOTO = png(make_picture(64, 96))
PNG = RenderOptions("png")


def of(*models: Path) -> Settings:
    """A process with the first as its own model."""
    return Settings(model=models[0], other_models=list(models[1:]), dtype="float32")


@dataclass
class Loads:
    """What was loaded, in order; nothing is while ``may`` is not set."""

    names: list[str] = field(default_factory=list)
    may: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    seen, real = Loads(), loading.load_model
    seen.may.set()

    def watched(settings: Settings) -> object:
        made = real(settings)
        seen.may.wait(60)
        seen.names.append(made[0].manifest.name)
        return made

    monkeypatch.setattr(loading, "load_model", watched)
    yield seen
    seen.may.set()


@pytest.fixture(scope="module")
def old(model_of: Callable[[str], Path]) -> Path:
    """Latents at another scale than those of ``small_model``, and another auto-encoder."""
    return model_of("kl")


@pytest.fixture(scope="module")
def old_blob(old: Path) -> tuple[bytes, bytes]:
    """A file of the old model, and how that shows it."""

    async def scenario(pipeline: Pipeline) -> tuple[bytes, bytes]:
        content = (await pipeline.compress(PHOTO, CompressOptions())).content
        return content, (await pipeline.render(content, PNG)).content

    return run(of(old), scenario)


def test_both_models_files_are_rendered_at_once_each_by_its_own(
    small_model: Path, old: Path, old_blob: tuple[bytes, bytes], loads: Loads
) -> None:
    content, shown = old_blob

    async def scenario(pipeline: Pipeline) -> None:
        ours = (await pipeline.compress(PHOTO, CompressOptions())).content
        alone = (await pipeline.render(ours, PNG)).content
        assert loads.names == ["small-residual"], "an other model is loaded before it is needed"
        mixed = await asyncio.gather(*(pipeline.render(each, PNG) for each in (content, ours, content, ours)))
        assert [each.content for each in mixed] == [shown, alone, shown, alone]
        assert loads.names == ["small-residual", "small-kl"]
        assert "load" in mixed[0].seconds
        assert "load" not in (await pipeline.render(content, PNG)).seconds
        await pipeline.verify(pipeline.parse(content))

    run(of(small_model, old), scenario)


def test_what_is_made_is_made_by_the_own_model(small_model: Path, old: Path) -> None:
    def made(*models: Path) -> Compressed:
        return run(of(*models), lambda pipeline: pipeline.compress(PHOTO, CompressOptions()))

    assert made(small_model, old).content == made(small_model).content


def test_files_of_models_that_are_not_there_are_refused_by_name(small_model: Path, old: Path, old_blob: tuple[bytes, bytes]) -> None:
    async def scenario(pipeline: Pipeline) -> None:
        with pytest.raises(WrongModel, match=r"made with model [0-9a-f]{8}; this service has 'small-residual-1' \([0-9a-f]{8}\)"):
            pipeline.parse(old_blob[0])

    run(of(small_model), scenario)


def test_copies_are_passed_over(small_model: Path, old: Path, tmp_path: Path) -> None:
    """One list can go to the processes of all models, and to those of the release before."""
    copies = [Path(shutil.copytree(model, tmp_path / f"copy-of-{model.name}")) for model in (small_model, old)]
    others = loading.other_models(of(small_model, *copies, small_model, old)).values()
    assert [other.folder for other in others] == [copies[1]]


def test_one_that_widens_another_reads_its_files_too(small_model: Path, tmp_path: Path) -> None:
    """As it does where it is the process's own."""
    wide = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "wide"))
    told = json.loads((wide / "sdc.json").read_text())
    narrow = told["latent_channels"] - int(load_file(wide / "entropy.safetensors")["group_sizes"][-1])
    (wide / "sdc.json").write_text(
        json.dumps(told | {"name": "cats", "version": "2", "widens": {"version": "1", "latent_channels": narrow}})
    )
    others = loading.other_models(of(small_model, wide))
    assert len(set(others.values())) == 1
    assert {other.codec.reads[identity] for identity, other in others.items()} == {"cats-1", "cats-2"}
    assert {other.folder for other in loading.other_models(of(wide, small_model)).values()} == {small_model}


def test_two_names_that_read_alike_stop_the_start(small_model: Path, tmp_path: Path) -> None:
    """What the device takes for each is learned, and told, by name and version."""
    models = [build_model(tmp_path / name, "tiny", name=name) for name in ("shop", "shop-2")]
    for model, version in zip(models, ("2-1", "1"), strict=True):
        (model / "sdc.json").write_text(json.dumps(json.loads((model / "sdc.json").read_text()) | {"version": version}))
    with pytest.raises(BadModel, match="are both called shop-2-1"):
        loading.other_models(of(small_model, *models))


def test_two_of_one_name_that_differ_stop_the_start(small_model: Path, old: Path, tmp_path: Path) -> None:
    """Trained further, and not given another version: a file does not say which of them it needs."""
    for name, models in {"small-residual": (small_model,), "small-kl": (small_model, old)}.items():
        double = build_model(tmp_path / name, "tiny", name=name)
        with pytest.raises(BadModel, match=f"{name} are both {name}-1 and differ"):
            loading.other_models(of(*models, double))


@pytest.mark.parametrize("part", ["sdc.json", "vae/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_folder_that_lacks_something_stops_the_start(small_model: Path, old: Path, tmp_path: Path, part: str) -> None:
    broken = Path(shutil.copytree(old, tmp_path / "broken"))
    (broken / part).unlink()
    with pytest.raises(BadModel, match=r"broken"):
        loading.other_models(of(small_model, broken))


def test_weights_cut_short_stop_the_start(small_model: Path, old: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(old, tmp_path / "broken"))
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadModel, match=r"vae/.* cannot be loaded"):
        loading.other_models(of(small_model, broken))


def test_one_load_for_all_and_no_caller_ends_it(small_model: Path, old: Path, old_blob: tuple[bytes, bytes], loads: Loads) -> None:
    content, shown = old_blob

    async def scenario(pipeline: Pipeline) -> None:
        loads.may.clear()
        gone, patient = (asyncio.create_task(pipeline.render(content, PNG)) for _ in range(2))
        with pytest.raises(DeadlineMissed, match="being loaded") as refused:
            await pipeline.render(content, PNG, time.monotonic() + 0.05)
        assert refused.value.retry_after_s == loading.RETRY_AFTER_S
        gone.cancel()
        ours = (await pipeline.compress(PHOTO, CompressOptions())).content
        assert (await pipeline.render(ours, PNG)).content, "the own model waits for nobody"
        loads.may.set()
        assert (await patient).content == shown
        assert gone.cancelled()
        assert (await pipeline.render(content, PNG)).content == shown
        assert loads.names == ["small-residual", "small-kl"]

    run(of(small_model, old), scenario)


def test_a_load_that_fails_is_told_and_tried_again(
    small_model: Path, old: Path, old_blob: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, shown = old_blob

    async def scenario(pipeline: Pipeline) -> None:
        real = loading.load_model

        def fails(settings: Settings) -> object:
            raise RuntimeError("/secret/folder is on fire")

        monkeypatch.setattr(loading, "load_model", fails)
        with pytest.raises(DeviceFailed, match=r"'small-kl'.* could not be loaded") as failure:
            await pipeline.render(content, PNG)
        assert "secret" not in failure.value.detail
        monkeypatch.setattr(loading, "load_model", real)
        assert (await pipeline.render(content, PNG)).content == shown

    run(of(small_model, old), scenario)


def test_a_service_that_stops_waits_for_what_is_being_loaded(
    small_model: Path, old: Path, old_blob: tuple[bytes, bytes], loads: Loads
) -> None:
    async def scenario(pipeline: Pipeline) -> None:
        loads.may.clear()
        asyncio.get_running_loop().call_later(0.1, loads.may.set)
        with pytest.raises(DeadlineMissed):
            await pipeline.render(old_blob[0], PNG, time.monotonic())

    run(of(small_model, old), scenario)
    assert loads.names == ["small-residual", "small-kl"]


def test_the_articles_steps_are_those_of_the_model_that_made_the_file(old: Path) -> None:
    """The bundled model's latent has many channels, the article's method is for four."""

    async def palette(pipeline: Pipeline) -> tuple[bytes, bytes]:
        content = (await pipeline.compress(PHOTO, CompressOptions("palette"))).content
        return content, (await pipeline.render(content, RenderOptions("png", "article"))).content

    async def scenario(pipeline: Pipeline) -> None:
        assert (await pipeline.render(content, RenderOptions("png", "article"))).content == shown
        ours = (await pipeline.compress(PHOTO, CompressOptions())).content
        with pytest.raises(MethodUnavailable, match="'bundled'"):
            await pipeline.render(ours, RenderOptions("png", "article"))
        with pytest.raises(MethodUnavailable):
            await pipeline.compress(PHOTO, CompressOptions("palette"))

    content, shown = run(of(old), palette)
    run(of(BUNDLED_MODEL, old), scenario)


def test_names_of_installed_models(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(old, tmp_path / "shop-1")
    monkeypatch.setenv("SDC_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("SDC_OTHER_MODELS", f'["shop-1", "bundled", "{old}"]')
    assert Settings().other_models == [tmp_path / "shop-1", BUNDLED_MODEL, old]


def test_over_http(small_model: Path, old: Path, old_blob: tuple[bytes, bytes], tmp_path: Path) -> None:
    def batches(operation: str) -> float:
        return REGISTRY.get_sample_value("sdc_batch_size_count", {"op": operation}) or 0

    content, shown = old_blob
    before = batches("render-small-kl-1")
    settings = of(small_model, old).model_copy(update={"store_url": f"file://{tmp_path}/store"})
    with TestClient(create_app(settings)) as client:
        stored = client.post("/blobs", content=content)
        assert (stored.status_code, stored.json()["model"]) == (201, "small-kl-1")
        assert client.get(stored.json()["links"]["info"]).json()["model"] == "small-kl-1"
        picture = client.get(stored.json()["links"]["png"])
        assert (picture.status_code, picture.content) == (200, shown)
        assert "model=" not in picture.headers["sdc-variant"]
        assert client.get(stored.json()["links"]["png"], headers={"If-None-Match": picture.headers["etag"]}).status_code == 304
        ours = client.post("/compress", content=PHOTO).json()
        assert ours["model"] == "small-residual-1"
        assert np.asarray(Image.open(io.BytesIO(client.get(ours["links"]["png"]).content))).shape == (64, 96, 3)
        assert batches("render-small-kl-1") == before + 1
