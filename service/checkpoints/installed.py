"""The models of this machine: those of the release, and those fetched into ``SDC_MODELS_DIR``.  It must not load torch to say so."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from service.errors import BadModel
from service.manifest import NAME, Manifest, read_manifest
from service.settings import BUNDLED_MODEL


@dataclass(frozen=True)
class Installed:
    folder: Path
    manifest: Manifest
    size: int
    """bytes on disk"""
    ours: bool
    """of the release"""


def installed(models: Path) -> list[Installed]:
    """All of them, those of the release first; a folder that is no model is left out."""
    found = []
    for folder in [*sorted(BUNDLED_MODEL.parent.glob("*/")), *(sorted(models.glob("[!.]*/")) if models.is_dir() else [])]:
        try:
            manifest = read_manifest(folder)
        except BadModel:
            continue
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found.append(Installed(folder, manifest, size, folder.parent == BUNDLED_MODEL.parent))
    return found


def place_for(models: Path, name: str) -> Path:
    """The folder of a model that is to be installed under this name; raises BadModel where that cannot be, or is taken."""
    if not NAME.fullmatch(name):
        raise BadModel(f"'{name}' is no name of a model: give one of a-z, 0-9, '.', '_' and '-' with --name")
    if (BUNDLED_MODEL.parent / name).exists():
        raise BadModel(f"'{name}' is the name of a model of the release: give another one with --name")
    if (models / name).exists():
        if not (models / name / "sdc.json").exists():
            raise BadModel(f"'{name}' in {models} is something else: give another name with --name")
        raise BadModel(f"'{name}' is installed already: `sdc models rm {name}` first, or give another name with --name")
    return models / name


def remove(models: Path, name: str) -> int:
    """Delete a fetched model, be it one that cannot be read; returns the bytes freed: not those that a calibrated model shares.

    Of a link to a folder the link goes and the folder stays.  Raises BadModel for a model that is not there, or is of the release.
    """
    if name in {folder.name for folder in BUNDLED_MODEL.parent.glob("*/")}:
        raise BadModel(f"'{name}' belongs to the release and stays")
    folder = {folder.name: folder for folder in models.glob("[!.]*/")}.get(name)  # looked up, for a name may be a path
    if folder is None or not (folder / "sdc.json").exists():
        raise BadModel(f"no model '{name}' is installed in {models}")
    if folder.is_symlink():
        folder.unlink()
        return 0
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    shutil.rmtree(folder)
    return sum(each.st_size for each in found if each.st_nlink == 1)
