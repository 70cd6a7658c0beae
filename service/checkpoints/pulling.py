"""Fetches a checkpoint from the hub, or takes one from a folder, and installs what the codec needs of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from service.checkpoints import convert, hub
from service.checkpoints.installed import place_for
from service.checkpoints.known import HUB_NAME, KNOWN, TAESD, Checkpoint, Repository
from service.errors import BadModel
from service.folders import alone, written_whole
from service.manifest import Source

CACHE = ".cache"
"""of downloads that are not complete"""


def pull(
    models: Path,
    wanted: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    decoder: str | None = None,
    fast: bool = False,
    told: Callable[[str], None] = print,
) -> Path:
    """Fetch a checkpoint, or take one that lies in a folder, and install it; returns its model folder.

    Args:
        models: where models are kept.
        wanted: a name of ``KNOWN``, OWNER/NAME on the hub, or a folder in diffusers layout.
        name: of the installed model; by default the known name, or made of the last part of ``wanted``.
        revision: of the hub's repository instead of the known one, or of ``main``.
        decoder: OWNER/NAME or folder of an auto-encoder whose decoder is taken; by default the known one, ``none`` for none.
        fast: decode with TAESD.
        told: is given lines for the user.

    Raises BadModel; nothing is installed then, and what was downloaded waits for the next try.
    """
    local = Path(wanted).is_dir() and wanted not in KNOWN
    if not local and wanted not in KNOWN and not HUB_NAME.fullmatch(wanted):
        raise BadModel(f"'{wanted}' is no known model ({', '.join(KNOWN)}), no OWNER/NAME and no folder")
    target = place_for(models, name or Path(wanted).name.lower())
    known = KNOWN.get(wanted) or Checkpoint(Repository(wanted, "main"))
    cache = models / CACHE
    with alone(models, lambda: told("another command is installing a model: waiting for it")):
        place_for(models, target.name)  # once more: that one may have taken it
        source = None
        if local:
            checkpoint = Path(wanted)
        else:
            listing = hub.look(Repository(known.base.name, revision or known.base.revision))
            licence = listing.licence or "none stated"
            told(f"licence of {listing.repository.name}: {licence}; by using the model you accept it")
            source = Source(repository=listing.repository.name, revision=listing.repository.revision, licence=licence)
            configurations, weights = _needed(listing)
            checkpoint = hub.fetch(listing, configurations, cache, told)
            convert.check(checkpoint)  # before gigabytes
            hub.fetch(listing, weights, cache, told)
        better = None if decoder == "none" else decoder or known.decoder
        better_folder = None if better is None else _auto_encoder(better, cache, told)
        fast_folder = _auto_encoder(TAESD, cache, told) if fast else None
        told("keeping encoder, decoder, U-Net and the embedding of the empty prompt")
        try:
            with written_whole(target) as staged:
                convert.convert(checkpoint, staged, target.name, source=source, decoder=better_folder, fast=fast_folder)
        except (OSError, SafetensorError) as error:
            raise BadModel(f"'{target.name}' could not be written to {models}: {error}") from error
        _forget(cache, [checkpoint, better_folder, fast_folder])
    return target


def _forget(cache: Path, folders: list[Path | None]) -> None:
    """Delete those that are of the cache; other downloads, which were cut, stay."""
    for folder in folders:
        if folder is not None and folder.is_relative_to(cache):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()
                cache.rmdir()


def _needed(listing: hub.Listing) -> tuple[list[str], list[str]]:
    """Of a checkpoint, what converting it takes: configurations, and weights."""
    files = list(listing.files)
    configs = ["vae/config.json", "unet/config.json", "scheduler/scheduler_config.json"]
    parts = ["vae", "unet"]
    if any(file.startswith("text_encoder/") for file in files):
        configs += ["text_encoder/config.json", *sorted(file for file in files if file.startswith("tokenizer/"))]
        parts.append("text_encoder")
    absent = [config for config in configs if config not in files]
    if absent:
        raise BadModel(f"{listing.repository.name} is no checkpoint in diffusers layout: it has no {absent[0]}")
    return configs, [file for part in parts for file in hub.weights(files, part)]


def _auto_encoder(place: str | Repository, cache: Path, told: Callable[[str], None]) -> Path:
    """Folder of an auto-encoder that stands alone."""
    if isinstance(place, str):
        if Path(place).is_dir():
            return Path(place)
        if not HUB_NAME.fullmatch(place):
            raise BadModel(f"'{place}' is no OWNER/NAME and no folder")
        place = Repository(place, "main")
    listing = hub.look(place)
    if "config.json" not in listing.files:
        raise BadModel(f"{place.name} is no auto-encoder: it has no config.json")
    return hub.fetch(listing, ["config.json", *hub.weights(listing.files, "")], cache, told)
