import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from service.checkpoints import hub as hub_client
from service.checkpoints.installed import installed, place_for, remove
from service.checkpoints.pulling import pull
from service.engine.engine import Engine
from service.errors import BadModel
from service.folders import LOCK
from service.manifest import read_manifest
from service.options import CompressOptions, RenderOptions
from service.pipeline import open_pipeline
from service.settings import Settings
from tests.checkpoints.conftest import REVISION, Hub, make_checkpoint, make_vae
from tests.conftest import make_picture, png

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def quiet(words: str) -> None:
    pass


def left(models: Path) -> set[str]:
    return {path.name for path in models.iterdir()} - {LOCK} if models.exists() else set()


def test_a_folder_becomes_a_model(checkpoint: Path, models: Path) -> None:
    """Only what the codec needs is kept: no text encoder, no tokenizer."""
    folder = pull(models, str(checkpoint), name="mine", told=quiet)
    assert {path.name for path in folder.iterdir()} == {"vae", "unet", "scheduler", "empty_prompt.safetensors", "sdc.json"}
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.latent_channels, manifest.downscale, manifest.patch_factor) == ("mine", 4, 8, 1)
    assert manifest.latent_std == pytest.approx([1 / 0.18215] * 4)
    assert manifest.source is None
    assert left(models) == {"mine"}
    engine = Engine(folder, dtype="float32")
    engine.check()
    assert engine.encode(make_picture(64, 64)[None]).shape == (1, 4, 8, 8)


def test_the_empty_prompt_is_what_the_text_encoder_says(checkpoint: Path, models: Path) -> None:
    """By transformers' own pipeline of tokenizer and encoder: start, and then the end 76 times."""
    import transformers

    folder = pull(models, str(checkpoint), name="mine", told=quiet)
    embedding = load_file(folder / "empty_prompt.safetensors")["embedding"]
    encoder = transformers.CLIPTextModel.from_pretrained(checkpoint / "text_encoder", variant="fp16", dtype=torch.float32)
    with torch.inference_mode():
        expected = encoder(torch.tensor([[58] + [59] * 76])).last_hidden_state
    assert embedding.shape == (1, 77, 16)
    assert torch.allclose(embedding, expected, atol=1e-5)


def test_a_schedule_that_is_not_of_betas_is_refused_before_the_weights_are_fetched(
    hub: Hub, checkpoint: Path, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "sd")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "sd" / "scheduler")
    hub.repositories = {"some/sd": tmp_path / "sd"}
    for wanted in ("some/sd", str(tmp_path / "sd")):
        with pytest.raises(BadModel, match="has no betas"):
            pull(models, wanted, told=quiet)
    assert not [file for file, _ in hub.asked if file.endswith(".safetensors")]
    assert left(models) == {".cache"}


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", {"num_class_embeds": 10}, "wants to be told a class"),
        ("unet", {"class_embed_type": "timestep"}, "wants to be told a class"),
        ("unet", {"out_channels": 8}, "gives 8 channels and the latent has 4"),
        ("vae", {"in_channels": 1}, "pictures in three colours"),
        ("vae", {"out_channels": 4}, "pictures in three colours"),
    ],
)
def test_what_could_never_run_is_refused(
    checkpoint: Path, models: Path, tmp_path: Path, part: str, change: dict[str, object], words: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "sd")
    path = tmp_path / "sd" / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadModel, match=words):
        pull(models, str(tmp_path / "sd"), told=quiet)
    assert left(models) == set()


@pytest.mark.parametrize("told", ["[]", '{"_class_name": []}', "{"])
def test_a_configuration_that_is_none_is_refused(checkpoint: Path, models: Path, tmp_path: Path, told: str) -> None:
    for number, part in enumerate(("vae/config.json", "scheduler/scheduler_config.json")):
        folder = tmp_path / f"sd{number}"
        shutil.copytree(checkpoint, folder)
        (folder / part).write_text(told)
        with pytest.raises(BadModel, match=part):
            pull(models, str(folder), told=quiet)


def test_a_full_disk_is_told(checkpoint: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By safetensors in an error of its own."""

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("service.checkpoints.convert.save_file", full)
    with pytest.raises(BadModel, match=r"'mine' could not be written to .*No space left"):
        pull(models, str(checkpoint), name="mine", told=quiet)
    assert left(models) == set()


def test_latents_of_a_mean_and_deviation_for_each_channel(checkpoint: Path, models: Path, tmp_path: Path) -> None:
    """(z - mean) * scaling / deviation, as in diffusers' pipelines."""
    shutil.copytree(checkpoint, tmp_path / "sd")
    path = tmp_path / "sd" / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latents_mean": [1, 2, 3, 4], "latents_std": [1, 1, 2, 2]}))
    manifest = read_manifest(pull(models, str(tmp_path / "sd"), told=quiet))
    assert manifest.latent_mean == [1, 2, 3, 4]
    assert manifest.latent_std == pytest.approx([each / 0.18215 for each in (1, 1, 2, 2)])


def test_a_text_encoder_that_is_not_all_there_is_refused(checkpoint: Path, models: Path, tmp_path: Path) -> None:
    """transformers would make up what is missing."""
    shutil.copytree(checkpoint, tmp_path / "sd")
    path = tmp_path / "sd" / "text_encoder" / "model.fp16.safetensors"
    weights = load_file(path)
    name = next(each for each in weights if "token_embedding" in each)
    save_file({key: value for key, value in weights.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(BadModel, match=f"text_encoder is incomplete: 1 tensors.*{name}"):
        pull(models, str(tmp_path / "sd"), told=quiet)
    assert left(models) == set()


def test_a_tokenizer_need_not_know_how_many_words_there_are(checkpoint: Path, models: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "sd")
    (tmp_path / "sd" / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    folders = [pull(models, str(folder), name=name, told=quiet) for folder, name in ((checkpoint, "a"), (tmp_path / "sd", "b"))]
    first, second = (load_file(folder / "empty_prompt.safetensors")["embedding"] for folder in folders)
    assert torch.equal(first, second)


def test_the_whole_journey(checkpoint: Path, models: Path) -> None:
    pull(models, str(checkpoint), name="mine", told=quiet)
    settings = Settings(model=Path("mine"), models_dir=models, store_url="memory:///")
    assert settings.model == models / "mine"

    async def scenario() -> None:
        async with open_pipeline(settings, warm=False) as pipeline:
            for options in (CompressOptions(max_bytes=900), CompressOptions("palette")):
                made = await pipeline.compress(png(make_picture(90, 70)), options)
                for steps in (0, 1, 3, "article"):
                    assert (await pipeline.render(made.content, RenderOptions("png", steps))).content  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_v_prediction_is_known(tmp_path: Path, models: Path) -> None:
    folder = pull(models, str(make_checkpoint(tmp_path / "v", "v_prediction")), told=quiet)
    engine = Engine(folder, dtype="float32")
    assert engine._networks.prediction_type == "v_prediction"
    engine.check()


def test_a_better_decoder_is_swapped_in(checkpoint: Path, models: Path, tmp_path: Path) -> None:
    """The decoder and what stands before it, and nothing of the encoder."""
    other = make_vae(seed=7)
    other.save_pretrained(tmp_path / "mse")
    folder = pull(models, str(checkpoint), name="mine", decoder=str(tmp_path / "mse"), told=quiet)
    kept = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    first = load_file(checkpoint / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    for key, value in kept.items():
        expected = other.state_dict()[key].half() if key.startswith(("decoder.", "post_quant_conv.")) else first[key]
        assert torch.equal(value, expected), key
    assert read_manifest(folder).version.endswith("-d")


def test_a_decoder_of_latents_of_another_scale_is_refused(checkpoint: Path, models: Path, tmp_path: Path) -> None:
    """SDXL's: all shapes are the same."""
    other = make_vae(seed=7)
    other.register_to_config(scaling_factor=0.13025)
    other.save_pretrained(tmp_path / "xl")
    with pytest.raises(BadModel, match="not of these latents: they are scaled otherwise"):
        pull(models, str(checkpoint), name="mine", decoder=str(tmp_path / "xl"), told=quiet)
    assert left(models) == set()


def test_a_decoder_of_other_latents_is_refused(checkpoint: Path, models: Path, model_path_of_other_vae: Path) -> None:
    with pytest.raises(BadModel, match="not of these latents"):
        pull(models, str(checkpoint), name="mine", decoder=str(model_path_of_other_vae), told=quiet)
    assert left(models) == set()


@pytest.fixture
def model_path_of_other_vae(tmp_path: Path) -> Path:
    diffusers.AutoencoderKL(3, 3, block_out_channels=(8,), latent_channels=3, norm_num_groups=4).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_the_fast_decoder_takes_the_unets_latent(checkpoint: Path, models: Path, hub: Hub, tmp_path: Path) -> None:
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4
    )
    tiny.save_pretrained(tmp_path / "taesd")
    hub.repositories["madebyollin/taesd"] = tmp_path / "taesd"
    folder = pull(models, str(checkpoint), name="fast", fast=True, told=quiet)
    slow = pull(models, str(checkpoint), name="slow", told=quiet)
    latents = np.random.default_rng(0).normal(size=(1, 4, 6, 5)).astype(np.float32)
    engine = Engine(folder, dtype="float32")
    shown = engine.decode(latents)
    with torch.inference_mode():
        expected = tiny.half().float().decode(torch.from_numpy(latents)).sample[0].permute(1, 2, 0).numpy()
    assert np.abs(shown[0] - np.clip((expected + 1) * 127.5, 0, 255)).max() <= 1
    assert engine.decoder_name != Engine(slow, dtype="float32").decoder_name
    assert (engine.encode(make_picture(64, 64)[None]) == Engine(slow, dtype="float32").encode(make_picture(64, 64)[None])).all()


def test_by_its_short_name(hub: Hub, checkpoint: Path, models: Path, tmp_path: Path) -> None:
    """sd15: at its pinned revision, with sd-vae-ft-mse's decoder, the licence said, and no file fetched that is not needed."""
    repository = tmp_path / "repository"
    shutil.copytree(checkpoint, repository)
    (repository / "v1-5-pruned.ckpt").write_bytes(bytes(10_000))
    (repository / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(10_000))
    (repository / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(bytes(10_000))
    (repository / "unet" / "diffusion_pytorch_model.bin").write_bytes(bytes(10_000))
    make_vae(3).save_pretrained(tmp_path / "mse")
    hub.repositories = {"stable-diffusion-v1-5/stable-diffusion-v1-5": repository, "stabilityai/sd-vae-ft-mse": tmp_path / "mse"}
    said: list[str] = []
    folder = pull(models, "sd15", told=said.append)
    assert folder == models / "sd15"
    manifest = read_manifest(folder)
    assert manifest.version == f"{REVISION[:12]}-d"
    assert manifest.source is not None
    assert manifest.source.model_dump() == {
        "repository": "stable-diffusion-v1-5/stable-diffusion-v1-5", "revision": REVISION, "licence": "creativeml-openrail-m",
    }  # fmt: skip
    assert "creativeml-openrail-m" in said[0]
    fetched = [file for file, _ in hub.asked]
    assert UNET in fetched
    assert not [
        file
        for file in fetched
        if file.endswith((".ckpt", ".bin")) or "non_ema" in file or file == "unet/diffusion_pytorch_model.safetensors"
    ]
    assert left(models) == {"sd15"}


def test_a_cut_download_goes_on_where_it_stopped(hub: Hub, checkpoint: Path, models: Path) -> None:
    hub.repositories = {"some/sd": checkpoint}
    times = iter([2_000])
    hub.cut = lambda file: next(times, 0) if file == UNET else None  # and then the line is dead
    with pytest.raises(BadModel, match="goes on where it stopped"):
        pull(models, "some/sd", told=quiet)
    assert left(models) == {".cache"}
    before = len(hub.asked)
    hub.cut = lambda file: None
    pull(models, "some/sd", told=quiet)
    again = hub.asked[before:]
    assert (UNET, None) not in again
    assert (UNET, "bytes=2000-") in again
    assert not [file for file, _ in again if file == "unet/config.json"]  # what was there is not fetched twice
    assert left(models) == {"sd"}


def test_another_download_is_left_alone(hub: Hub, checkpoint: Path, models: Path) -> None:
    """One that was cut, or is under way: gigabytes."""
    hub.repositories = {"some/sd": checkpoint, "other/sd": checkpoint}
    hub.cut = lambda file: 0 if file == UNET else None
    with pytest.raises(BadModel, match="goes on where it stopped"):
        pull(models, "some/sd", name="first", told=quiet)
    hub.cut = lambda file: None
    pull(models, "other/sd", name="second", told=quiet)
    pull(models, str(checkpoint), name="third", told=quiet)
    before = len(hub.asked)
    pull(models, "some/sd", name="first", told=quiet)
    assert not [file for file, _ in hub.asked[before:] if file == "unet/config.json"]
    assert left(models) == {"first", "second", "third"}


def test_what_was_damaged_since_it_was_fetched_is_fetched_again(hub: Hub, checkpoint: Path, models: Path) -> None:
    hub.repositories = {"some/sd": checkpoint}
    hub.cut = lambda file: 0 if file == UNET else None
    with pytest.raises(BadModel, match="goes on where it stopped"):
        pull(models, "some/sd", told=quiet)
    (kept,) = (models / ".cache").rglob("unet/config.json")
    kept.write_text(kept.read_text() * 2)
    before = len(hub.asked)
    hub.cut = lambda file: None
    pull(models, "some/sd", told=quiet)
    assert ("unet/config.json", None) in hub.asked[before:]
    assert left(models) == {"sd"}


def test_two_at_once_follow_one_another(hub: Hub, checkpoint: Path, models: Path) -> None:
    """Each gets its files whole; of two of one name the second is told that it is taken."""
    hub.repositories = {"some/sd": checkpoint}
    begun, others, said, refused = threading.Event(), threading.Semaphore(0), [], []

    def answered(file: str) -> None:
        if not begun.is_set():
            begun.set()
            for _ in range(2):
                others.acquire(timeout=5)

    def wait(words: str) -> None:
        if "waiting for it" in words:
            said.append(words)
            others.release()

    def second(name: str) -> None:
        try:
            pull(models, "some/sd", name=name, told=wait)
        except BadModel as error:
            refused.append(error.detail)

    hub.cut = answered
    threads = [threading.Thread(target=pull, args=(models, "some/sd"), kwargs={"name": "a", "told": quiet})]
    threads[0].start()
    assert begun.wait(20)
    threads += [threading.Thread(target=second, args=(name,)) for name in "ab"]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 2
    assert len(refused) == 1 and "'a' is installed already" in refused[0]
    assert left(models) == {"a", "b"}


def test_what_a_killed_pull_had_half_made_goes_with_the_next(checkpoint: Path, models: Path) -> None:
    (models / ".partial-x" / "sd" / "vae").mkdir(parents=True)
    pull(models, str(checkpoint), name="mine", told=quiet)
    assert left(models) == {"mine"}


def test_a_download_that_somebody_takes_away_is_told(hub: Hub, checkpoint: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories = {"some/sd": checkpoint}
    monkeypatch.setattr("service.checkpoints.hub._is_sound", lambda path, *_: path.unlink() or True)
    with pytest.raises(BadModel, match="did not come whole"):
        pull(models, "some/sd", told=quiet)


@pytest.mark.parametrize("file", [UNET, "unet/config.json"])
def test_what_is_not_what_the_hub_says_is_thrown_away(hub: Hub, checkpoint: Path, models: Path, file: str) -> None:
    hub.repositories = {"some/sd": checkpoint}
    hub.damaged = {file}
    with pytest.raises(BadModel, match=f"{file} is not what the hub says"):
        pull(models, "some/sd", told=quiet)
    assert not (models / "sd").exists()
    hub.damaged = set()
    pull(models, "some/sd", told=quiet)


@pytest.mark.parametrize(
    ("wanted", "options", "words"),
    [
        ("no/such", {}, "the hub has no no/such"),
        ("some/sd", {"revision": "v9"}, "no revision 'v9'"),
        ("nonsense", {}, "is no known model (sd14, sd15, sd21), no OWNER/NAME and no folder"),
        ("some/sd", {"name": "../x"}, "is no name of a model"),
        ("some/sd", {"name": "bundled"}, "a model of the release"),
        ("some/sd", {"decoder": "x"}, "is no OWNER/NAME and no folder"),
        ("some/vae", {}, "has no vae/config.json"),
    ],
)
def test_what_cannot_be_had_is_said(hub: Hub, checkpoint: Path, models: Path, wanted: str, options: dict[str, str], words: str) -> None:
    hub.repositories = {"some/sd": checkpoint, "some/vae": checkpoint / "vae"}
    with pytest.raises(BadModel) as caught:
        pull(models, wanted, told=quiet, **options)  # type: ignore[arg-type]
    assert words in caught.value.detail
    assert left(models) <= {".cache"}


@pytest.mark.parametrize("name", ["bundled", "sub/mine", "../x", "", "there"])
def test_a_fitted_model_has_a_name_by_which_it_is_found(models: Path, name: str) -> None:
    (models / "there").mkdir(parents=True)
    with pytest.raises(BadModel, match="--name"):
        place_for(models, name)
    assert place_for(models, "mine") == models / "mine"


@pytest.mark.parametrize("file", ["../../stolen", "/tmp/stolen", "vae//config.json", "vae/./config.json", "vae/.."])
def test_a_hub_that_names_files_elsewhere_is_refused(hub: Hub, checkpoint: Path, models: Path, file: str) -> None:
    hub.repositories = {"some/sd": checkpoint}
    hub.told = {"siblings": [{"rfilename": file, "size": 3, "blobId": "0" * 40}]}
    with pytest.raises(BadModel, match="no path within it"):
        pull(models, "some/sd", told=quiet)
    assert left(models) == set()


@pytest.mark.parametrize("commit", ["../../elsewhere", "main", REVISION + "/..", None])
def test_a_hub_that_names_no_commit_is_refused(hub: Hub, checkpoint: Path, models: Path, commit: str | None) -> None:
    hub.repositories = {"some/sd": checkpoint}
    hub.told = {"sha": commit}
    with pytest.raises(BadModel, match="names no commit"):
        pull(models, "some/sd", told=quiet)
    assert left(models) == set()


def test_files_that_are_not_for_everybody(hub: Hub, checkpoint: Path, models: Path) -> None:
    hub.repositories = {"some/sd": checkpoint}
    hub.gated = True
    with pytest.raises(BadModel, match="wants its terms accepted"):
        pull(models, "some/sd", told=quiet)


def test_an_endpoint_may_end_in_a_slash(hub: Hub, checkpoint: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories = {"some/sd": checkpoint}
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.base}/")
    pull(models, "some/sd", told=quiet)


def test_without_a_network(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(BadModel, match=r"the hub cannot be reached.*give the folder"):
        pull(models, "sd15", told=quiet)


def test_pickles_are_never_fetched(hub: Hub, checkpoint: Path, models: Path, tmp_path: Path) -> None:
    repository = tmp_path / "pickled"
    shutil.copytree(checkpoint, repository)
    (repository / UNET).unlink()
    (repository / "unet" / "diffusion_pytorch_model.bin").write_bytes(bytes(100))
    hub.repositories = {"some/sd": repository}
    for wanted in ("some/sd", str(repository)):
        with pytest.raises(BadModel, match="pickled weights only"):
            pull(models, wanted, told=quiet)
    assert not [file for file, _ in hub.asked if file.endswith(".bin")]


def test_an_inpainting_unet_is_refused(tmp_path: Path, models: Path) -> None:
    with pytest.raises(BadModel, match="inpainting"):
        pull(models, str(make_checkpoint(tmp_path / "sd", in_channels=9)), told=quiet)
    assert left(models) == set()


@pytest.mark.parametrize("part", ["vae/config.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"])
def test_a_partial_folder_is_refused(checkpoint: Path, models: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(checkpoint, tmp_path / "sd")
    (tmp_path / "sd" / part).unlink()
    with pytest.raises(BadModel):
        pull(models, str(tmp_path / "sd"), told=quiet)
    assert left(models) == set()


def test_weights_are_chosen_by_variant_and_shards() -> None:
    names = [
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json", "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors",
    ]  # fmt: skip
    assert hub_client.weights(names, "unet") == sorted(names[:3])
    assert hub_client.weights(names, "vae") == [names[4]]
    assert hub_client.weights(names, "text_encoder") == [names[5]]
    with pytest.raises(BadModel, match="has no weights"):
        hub_client.weights(names, "safety_checker")


def test_list_and_remove(checkpoint: Path, models: Path) -> None:
    pull(models, str(checkpoint), name="mine", told=quiet)
    (models / "no-model").mkdir()
    assert [(each.folder.name, each.ours) for each in installed(models)] == [("bundled", True), ("mine", False)]
    with pytest.raises(BadModel, match="installed already"):
        pull(models, str(checkpoint), name="mine", told=quiet)
    assert remove(models, "mine") > 10_000
    for name, words in (("mine", "no model 'mine'"), ("bundled", "belongs to the release"), ("..", "no model"), ("no-model", "no model")):
        with pytest.raises(BadModel, match=words):
            remove(models, name)
    assert left(models) == {"no-model"}


def test_a_link_to_a_model_is_taken_away_and_the_model_stays(small_model: Path, models: Path) -> None:
    models.mkdir()
    (models / "mine").symlink_to(small_model)
    assert remove(models, "mine") == 0
    assert left(models) == set()
    assert read_manifest(small_model).name == "small-residual"


def test_a_folder_whose_manifest_cannot_be_read_is_no_model(models: Path) -> None:
    (models / "odd" / "sdc.json").mkdir(parents=True)
    assert [each.folder.name for each in installed(models)] == ["bundled"]
    with pytest.raises(BadModel, match="cannot be read: Is a directory"):
        read_manifest(models / "odd")


def test_what_is_in_the_way_of_a_pull_can_be_removed(models: Path) -> None:
    (models / "odd").mkdir(parents=True)
    (models / "odd" / "sdc.json").write_text("{}")
    with pytest.raises(BadModel, match="sdc models rm odd"):
        place_for(models, "odd")
    assert remove(models, "odd") == 2
    assert place_for(models, "odd") == models / "odd"


def test_what_another_model_shares_is_not_freed(models: Path) -> None:
    for name in ("first", "fitted"):
        (models / name).mkdir(parents=True)
        (models / name / "sdc.json").write_text("{}")
    (models / "first" / "weights").write_bytes(bytes(1000))
    os.link(models / "first" / "weights", models / "fitted" / "weights")
    assert remove(models, "first") == 2
    assert remove(models, "fitted") == 1002


def test_two_weights_are_two_versions(checkpoint: Path, models: Path, tmp_path: Path) -> None:
    """Without a revision the weights say which model it is."""
    shutil.copytree(checkpoint, tmp_path / "other")
    weights = load_file(tmp_path / "other" / UNET)
    weights["conv_in.bias"] += 1
    save_file(weights, tmp_path / "other" / UNET, metadata={"format": "pt"})
    first, second, third = (
        read_manifest(pull(models, str(folder), name=name, told=quiet)).version
        for folder, name in ((checkpoint, "a"), (tmp_path / "other", "b"), (checkpoint, "c"))
    )
    assert first == third != second


def test_the_command(hub: Hub, checkpoint: Path, models: Path) -> None:
    """The real one, in a process of its own: pull, list, check, rm."""
    hub.repositories = {"some/sd": checkpoint}
    environment = os.environ | {"SDC_MODELS_DIR": str(models), "HF_ENDPOINT": hub.base, "COLUMNS": "200"}

    def sdc(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "models", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    told = sdc("pull", "some/sd", "--name", "mine")
    assert "licence of some/sd: creativeml-openrail-m" in told
    assert "sdc serve --model mine" in told
    assert "creativeml-openrail-m" in sdc("list")
    assert "mine 0123456789ab" in sdc("check", "mine")
    assert "MB freed" in sdc("rm", "mine")
    assert "no model 'mine'" in sdc("rm", "mine", code=1)
    assert left(models) == set()
