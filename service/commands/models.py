"""Model folders: what is there, fetched, fitted, deleted, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.commands.terminal import Images, Model, err, errors_told, out, settings_of, show

app = typer.Typer(help="Model folders.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """The models of this machine: those of the release, and those in SDC_MODELS_DIR."""
    from service.checkpoints.installed import installed

    table = Table("name", "version", "latent", "MB", "licence", "identity", "folder")
    for each in installed(settings_of().models_dir):
        manifest = each.manifest
        latent = f"{manifest.latent_channels} channels at 1/{manifest.downscale}"
        licence = "of the release" if manifest.source is None and each.ours else manifest.source.licence if manifest.source else "not told"
        table.add_row(
            each.folder.name, manifest.version, latent, f"{each.size / 1e6:,.0f}", licence, manifest.model_identity.hex(), str(each.folder)
        )
    show(table)


@app.command("pull")
def pull_model(
    wanted: Annotated[str, typer.Argument(help="sd14, sd15, sd21, OWNER/NAME on the hub, or a folder in diffusers layout.")],
    name: Annotated[str | None, typer.Option(help="Name to install it under.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of the repository; the known models have one that is tested against.")] = None,
    decoder: Annotated[
        str | None, typer.Option(help="OWNER/NAME or folder of an auto-encoder whose decoder is taken; sd14 and sd15: sd-vae-ft-mse; none.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Decode with TAESD: many times faster, and less well.")] = False,
) -> None:
    """Fetch a Stable Diffusion checkpoint (HF_ENDPOINT, HF_TOKEN) and keep what the codec needs of it."""
    from service.checkpoints.pulling import pull

    def told(words: str) -> None:
        err.print(words, highlight=False, markup=False, soft_wrap=True)

    settings = settings_of()
    with errors_told():
        folder = pull(settings.models_dir, wanted, name=name, revision=revision, decoder=decoder, fast=fast, told=told)
    out.print(f"{folder.name} is installed: sdc serve --model {folder.name}", highlight=False, markup=False, soft_wrap=True)


@app.command("calibrate")
def calibrate_model(
    images: Images,
    name: Annotated[str, typer.Option(help="Name to install the result under, in SDC_MODELS_DIR.")],
    model: Model = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="For fitting; encoding the pictures comes before.")] = 3,
    crops: Annotated[int, typer.Option(min=8, help="Of 256x256 pixels, to fit to.")] = 192,
) -> None:
    """Fit an entropy profile to a model's latents: the same pictures from smaller files.  The result is another model."""
    from service.calibration.calibrate import calibrate
    from service.checkpoints.installed import place_for
    from service.codec.steps import step_size
    from service.engine.engine import Engine

    settings = settings_of(model)
    with errors_told(), Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err) as progress:
        tasks: dict[str, TaskID] = {}

        def told(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0)
            progress.update(tasks[what], completed=share)

        target = place_for(settings.models_dir, name)
        engine = Engine(settings.model, settings.device, settings.dtype)
        gains = calibrate(engine, images, target, minutes, crops, told)
    table = Table("step", "bytes before", "bytes now", "gain", title="a 256x256 crop of pictures that were held out")
    for gain in gains:
        table.add_row(
            f"{step_size(gain.index):.2f}", f"{gain.before:.0f}", f"{gain.after:.0f}", f"{100 * (1 - gain.after / gain.before):.1f} %"
        )
    out.print(table)
    out.print(f"{name} is installed: sdc serve --model {name}", highlight=False, markup=False, soft_wrap=True)


@app.command("rm")
def remove_model(name: Annotated[str, typer.Argument(help="Of an installed model.")]) -> None:
    """Delete a fetched model.  Its .sdc files cannot be rendered without it."""
    from service.checkpoints.installed import remove

    with errors_told():
        freed = remove(settings_of().models_dir, name)
    out.print(f"{name} is gone, {freed / 1e6:,.1f} MB freed", highlight=False, markup=False)


@app.command("check")
def check_model(folder: Annotated[Path, typer.Argument(help="Model folder, or name of an installed model.")]) -> None:
    """Load a model folder as `serve` would, and print its identities."""
    from service.loading import load_model

    with errors_told():
        engine, codec = load_model(settings_of(folder))
    out.print(engine.description, highlight=False)
    out.print(f"model identity {codec.model_identity.hex()}, code identity {codec.code_identity.hex()}", highlight=False)
    for other in list(codec.reads.values())[1:]:
        out.print(f"reads the files of {other} too", highlight=False)
