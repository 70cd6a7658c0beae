"""``python -m training``: the stages in order, each resumable by the same command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training import config as configuration

app = typer.Typer(help=__doc__, no_args_is_help=True)
Images = Annotated[list[Path], typer.Option(help="Folder or tar of pictures; may be given several times.")]
Out = Annotated[Path, typer.Option(help="Folder for checkpoints and the log; the same folder resumes.")]
ConfigFile = Annotated[Path, typer.Option(help="Every constant of the run.")]
DEFAULT_CONFIG = Path(__file__).with_name("bundled.toml")


@app.callback()
def main() -> None:
    """Several stages, one command each."""


@app.command()
def vae(
    images: Images,
    out: Out,
    config: ConfigFile = DEFAULT_CONFIG,
    start: Annotated[Path | None, typer.Option(help="Model folder to begin from, for fine-tuning.")] = None,
) -> None:
    """Train the auto-encoder with its context model."""
    from training import vae as stage

    stage.train(configuration.load(config), images, out, start)


@app.command()
def context(images: Images, out: Out, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Train the context model alone, on the finished auto-encoder's latents."""
    from training import context_stage as stage

    stage.train(configuration.load(config), images, out)


@app.command()
def unet(images: Images, out: Out, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Train the U-Net through the finished decoder."""
    from training import unet as stage

    stage.train(configuration.load(config), images, out)


@app.command()
def control(images: Images, out: Out, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Compare the U-Net with one more residual block of the decoder, trained alike."""
    from training.control import compare

    compare(configuration.load(config), images, out)


@app.command()
def export(
    images: Images,
    out: Out,
    model: Annotated[Path, typer.Option(help="Model folder to write.")],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Write a model folder that `sdc serve --model DIR` accepts."""
    from training.export import export as write

    write(configuration.load(config), images, out, model)


@app.command()
def refit(
    images: Images,
    start: Annotated[Path, typer.Option(help="Model folder whose decoder is to be made anew.")],
    model: Annotated[Path, typer.Option(help="Model folder to write; it reads the files of the other.")],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Make the decoder's last layers anew by least squares: minutes, and stored files stay as they are."""
    from training.refit import refit as write

    write(configuration.load(config), images, start, model)


@app.command()
def widen(
    images: Images,
    start: Annotated[Path, typer.Option(help="Model folder that is to have more latent channels.")],
    out: Out,
    model: Annotated[Path, typer.Option(help="Model folder to write; it reads the files of the other.")],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Give a finished model more latent channels for fine detail: minutes, and files of the finished one are read too."""
    from training.widen import widen as write

    write(configuration.load(config), images, start, out, model)


@app.command()
def held_out(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder to write them to; must not be there.")],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Copy the pictures that are never trained on to a folder: for `sdc bench rd`, which gives each as many bytes to every model."""
    from training.data import write_held_out

    count = write_held_out(images, configuration.load(config).data.validation_percent, out)
    print(f"{out}: {count} pictures that no stage trains on")


if __name__ == "__main__":
    app()
