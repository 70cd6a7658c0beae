"""Fetches the files of a checkpoint from a hub that speaks Hugging Face's protocol (``HF_ENDPOINT``), and checks them.

Files wait in a cache of their own until all are there, so that a download that was cut goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers

from service.checkpoints.known import Repository
from service.engine.network import PICKLED
from service.errors import BadModel

VARIANTS = ("fp16", "")
"""of weights, the one wanted most first: half the bytes, and no worse in bf16"""
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a revision."""

    repository: Repository
    """with the commit that its revision stands for"""
    files: dict[str, tuple[int, str]]
    """path to size and checksum: SHA-256 of a large file, git's SHA-1 of a small one"""
    licence: str | None


def look(repository: Repository) -> Listing:
    """Ask what there is; raises BadModel, with what to do, where that cannot be answered.

    Files are kept by the names and the commit that the hub tells: what would lead out of the cache is refused.
    """
    try:
        info = HfApi(endpoint=_endpoint()).model_info(repository.name, revision=repository.revision, files_metadata=True)
    except GatedRepoError as error:
        raise _gated(repository) from error
    except RevisionNotFoundError as error:
        raise BadModel(f"{repository.name} has no revision '{repository.revision}'") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BadModel(f"the hub has no {repository.name}, or not for everybody: check the name, or set HF_TOKEN") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise BadModel(
            f"the hub cannot be reached ({error}): without a network give the folder of a checkpoint instead of a name"
        ) from error
    if not COMMIT.fullmatch(info.sha or ""):
        raise BadModel(f"the hub names no commit of {repository.name}, but {info.sha!r}: nothing is fetched from it")
    files = {}
    for sibling in info.siblings or []:
        if any(step in ("", ".", "..") for step in sibling.rfilename.split("/")):
            raise BadModel(f"{repository.name} has a file {sibling.rfilename!r}, which is no path within it: nothing is fetched from it")
        checksum = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if sibling.size is not None and checksum is not None:
            files[sibling.rfilename] = (sibling.size, checksum)
    licence = None if info.card_data is None else info.card_data.get("license")
    return Listing(Repository(repository.name, str(info.sha)), files, licence)


def _gated(repository: Repository) -> BadModel:
    return BadModel(f"{repository.name} wants its terms accepted: do that on its page, then set HF_TOKEN")


def _endpoint() -> str | None:
    """Asked anew each time; the library reads it when it is imported, and takes off a slash at its end as here."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def weights(files: Iterable[str], part: str) -> list[str]:
    """The safetensors of one part, in the variant wanted most: one file, or all shards and their index.

    Args:
        files: paths in a repository or folder.
        part: ``vae``, ``unet``, ``text_encoder``, or nothing for a repository that is one part.

    Raises BadModel where there are none, or pickled ones only.
    """
    prefix = f"{part}/" if part else ""
    here = [file.removeprefix(prefix) for file in files if file.startswith(prefix) and "/" not in file.removeprefix(prefix)]
    for variant in VARIANTS:
        dotted = re.escape(f".{variant}") if variant else ""
        shape = re.compile(rf"(diffusion_pytorch_model|model)({dotted}(-\d+-of-\d+)?\.safetensors|\.safetensors\.index{dotted}\.json)")
        found = sorted(prefix + name for name in here if shape.fullmatch(name))
        if any(name.endswith(".safetensors") for name in found):
            return found
    if any(name.endswith(PICKLED) for name in here):
        raise BadModel(f"{part or 'it'} has pickled weights only, which can run code when they are loaded: bring them as safetensors")
    raise BadModel(f"{part or 'it'} has no weights")


def fetch(listing: Listing, wanted: list[str], cache: Path, told: Callable[[str], None]) -> Path:
    """Download files and check them; returns the folder they lie in, laid out as in the repository.

    Progress goes to standard error.  Raises BadModel for a file that does not come or is not what the hub said it would be: that
    one is thrown away, so that the next try fetches it again.
    """
    size = sum(listing.files[file][0] for file in wanted)
    told(f"{listing.repository.name} at {listing.repository.revision[:12]}: {len(wanted)} files, {size / 1e6:,.1f} MB")
    folder = cache / listing.repository.name.replace("/", "--") / listing.repository.revision
    for file in wanted:
        path, (size, checksum) = folder / file, listing.files[file]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        try:
            if path.exists():
                if _is_sound(path, size, checksum):
                    continue
                path.unlink()
            _download(listing.repository, file, partial, size)
            if not _is_sound(partial, size, checksum):
                partial.unlink()
                raise BadModel(f"{file} is not what the hub says it is: its checksum differs.  It was thrown away; try again")
            partial.rename(path)
        except GatedRepoError as error:  # what there is may be told to everybody, and given to few
            raise _gated(listing.repository) from error
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            raise BadModel(f"{file} did not come whole ({error}): the same command goes on where it stopped") from error
    return folder


def _download(repository: Repository, file: str, partial: Path, size: int) -> None:
    """Append what is missing.  ``hf_hub_download`` would begin anew: since 1.x it forgets what came before a cut."""
    url = hf_hub_url(repository.name, file, revision=repository.revision, endpoint=_endpoint())
    with partial.open("ab") as content:
        if content.tell() < size:
            http_get(url, content, resume_size=content.tell(), headers=build_hf_headers(), expected_size=size, displayed_filename=file)


def _is_sound(path: Path, size: int, checksum: str) -> bool:
    """A checksum of 64 characters is SHA-256 of the content, one of 40 that of git's blob."""
    if path.stat().st_size != size:
        return False
    digest = hashlib.sha256() if len(checksum) == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: digest).hexdigest() == checksum
