"""Pictures from folders and tars, split by hash of the name, served as random crops.  Knows nothing of models."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from service.errors import SdcError
from service.folders import written_whole
from service.imaging.opening import named_as_photograph, open_picture, photographs
from training.config import Data
from training.graphics import decorate

CORES = os.cpu_count() or 1
MOST_CUTTERS = 12

MOST_PIXELS = 1 << 30


def read_pictures(sources: list[Path]) -> list[tuple[str, bytes]]:
    """File name, without folders, and bytes of every picture in the given folders and tar files; several may have one name."""
    found: list[tuple[str, bytes]] = []
    for source in sources:
        if source.is_dir():
            found += [(path.name, path.read_bytes()) for path in photographs(source)]
        else:
            with tarfile.open(source) as tar:
                for member in tar:
                    path = Path(member.name)
                    if named_as_photograph(path.name) and (file := tar.extractfile(member)):
                        found += [(path.name, file.read())]
    if not found:
        raise SystemExit(f"no pictures in {', '.join(map(str, sources))}")
    return found


def _decoded(content: bytes) -> Image.Image | None:
    """As the service sees it: upright, in sRGB, what is transparent filled; None for what it cannot open."""
    try:
        return Image.fromarray(open_picture(content, MOST_PIXELS).rgb)
    except SdcError:  # a folder holds all sorts of things
        return None


def is_validation(name: str, percent: int) -> bool:
    """Whether a picture is kept from training; decided by its name alone, so that every run agrees."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < percent


def write_held_out(sources: list[Path], percent: int, folder: Path) -> int:
    """Write the pictures that are kept from training to ``folder``, as they are, those of equal name numbered; returns how many.

    Raises SystemExit if there are none, or if ``folder`` is there already: what it holds may be trained on by now.
    """
    if folder.exists():
        raise SystemExit(f"{folder} is there already")
    pictures = read_pictures(sources)
    kept = [(name, content) for name, content in pictures if is_validation(name, percent)]
    if not kept:
        raise SystemExit(f"none of {len(pictures)} pictures is held out: of many, {percent} % are (validation_percent), by their names")
    with written_whole(folder) as staged:
        staged.mkdir()
        for name, content in kept:
            path, numbers = staged / name, itertools.count(2)
            while path.exists():
                path = staged / f"{Path(name).stem}-{next(numbers)}{path.suffix}"
            path.write_bytes(content)
    return len(kept)


class Pictures:
    """Decoded pictures in memory, as RGB, shrunk never enlarged; those smaller than a crop are left out."""

    def __init__(self, sources: list[Path], config: Data, *, validation: bool) -> None:
        self.config = config
        chosen = [
            content for name, content in sorted(read_pictures(sources)) if is_validation(name, config.validation_percent) == validation
        ]
        with ThreadPoolExecutor(CORES) as pool:
            decoded = pool.map(_decoded, chosen)
            self.pictures = [picture for picture in decoded if picture is not None and min(picture.size) >= config.crop]
        if not self.pictures:
            what = f"held out ({config.validation_percent} %, by their names)" if validation else "to train on"
            raise SystemExit(f"none of {len(chosen)} pictures {what} has {config.crop} pixels a side or more: give others, or more")
        # A large picture holds many different crops: draw it more often, but not in proportion.
        self.weights = [(picture.width * picture.height) ** 0.5 for picture in self.pictures]

    def random_crop(self, rng: random.Random) -> np.ndarray:
        """One crop, uint8 (crop, crop, 3): a random window at a random scale, mirrored half the time, now and then with lettering."""
        picture = rng.choices(self.pictures, self.weights)[0]
        crop = self.config.crop
        most = min(min(picture.size) / crop, self.config.largest_downscale)
        side = crop * most ** rng.random()
        left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
        if side < 1.1 * crop:  # cut without resampling
            left, top, side = round(left), round(top), crop
            left, top = min(left, picture.width - crop), min(top, picture.height - crop)
            piece = picture.crop((left, top, left + crop, top + crop))
        else:
            piece = picture.resize((crop, crop), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        if rng.random() < 0.5:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < self.config.graphics_percent / 100:  # after mirroring: letters are not seen mirrored
            piece = decorate(piece, rng)
        return np.asarray(piece)

    def random_crops(self, rng: random.Random, count: int) -> torch.Tensor:
        """uint8 (count, 3, crop, crop)."""
        return to_tensor(np.stack([self.random_crop(rng) for _ in range(count)]))

    def batches(self, size: int, seed: int) -> Iterator[torch.Tensor]:
        """Endless uint8 batches (size, 3, crop, crop), cut ahead of the model by processes, three for every four cores."""
        cutters = max(1, min(MOST_CUTTERS, CORES * 3 // 4))
        yield from DataLoader(
            Batches(self, size, seed),
            batch_size=None,
            num_workers=cutters,
            prefetch_factor=4,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork",  # the pictures are in memory once
        )

    def centre_crops(self, count: int) -> torch.Tensor:
        """The centre crops of the first ``count`` pictures, uint8 (count, 3, crop, crop)."""
        crop = self.config.crop
        pieces = []
        for picture in self.pictures[:count]:
            left, top = (picture.width - crop) // 2, (picture.height - crop) // 2
            pieces.append(np.asarray(picture.crop((left, top, left + crop, top + crop))))
        return to_tensor(np.stack(pieces))


class Batches(IterableDataset[torch.Tensor]):
    """What one process of several cuts: random batches, not those of the others."""

    def __init__(self, pictures: Pictures, size: int, seed: int) -> None:
        self.pictures, self.size, self.seed = pictures, size, seed

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        rng = random.Random(f"{self.seed}.{worker.id if worker else 0}")
        while True:
            yield self.pictures.random_crops(rng, self.size)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) to uint8 (N, 3, H, W), channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
