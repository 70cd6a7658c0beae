"""Checkpoints of Stable Diffusion's classes, small and of random weights, and a hub on loopback that has them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from service.checkpoints.known import FT_MSE, KNOWN, TAESD

REVISION = "0123456789abcdef0123456789abcdef01234567"
PINNED = [FT_MSE, TAESD, *(each.base for each in KNOWN.values())]
LARGE = 4000
"""bytes from which the hub keeps a file as a large one"""


def make_vae(seed: int = 0) -> diffusers.AutoencoderKL:
    torch.manual_seed(seed)
    return diffusers.AutoencoderKL(
        3, 3, block_out_channels=(8,) * 4, latent_channels=4, norm_num_groups=4, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def make_unet(in_channels: int = 4, width: int = 16) -> diffusers.UNet2DConditionModel:
    """``width``: of the prompt's embedding."""
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, out_channels=4, cross_attention_dim=width, attention_head_dim=2, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def make_checkpoint(folder: Path, prediction_type: str = "epsilon", in_channels: int = 4, variant: str | None = "fp16") -> Path:
    """Stable Diffusion's folder as diffusers lays it out, everything small."""
    named = {"variant": variant} if variant else {}
    make_vae().half().save_pretrained(folder / "vae", **named)
    make_unet(in_channels).half().save_pretrained(folder / "unet", **named)
    diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")
    shape = transformers.CLIPTextConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
        bos_token_id=58, eos_token_id=59,
    )  # fmt: skip
    transformers.CLIPTextModel(shape).half().save_pretrained(folder / "text_encoder", **named)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    words = [*letters, *"!?.,;:", "<|startoftext|>", "<|endoftext|>"]
    (tokenizer / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "sd")


@dataclass
class Hub:
    """What a hub answers, and what it was asked."""

    base: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """file, and range of bytes, of each GET"""
    cut: Callable[[str], int | None] = lambda file: None
    """after how many bytes of a file the line breaks"""
    damaged: set[str] = field(default_factory=set)
    gated: bool = False
    """whether files are for those alone who accepted its terms, while everybody is told what there is"""
    told: dict[str, Any] = field(default_factory=dict)
    """of a listing, instead of the truth"""
    revisions: set[str] = field(default_factory=lambda: {REVISION, "main", *(each.revision for each in PINNED)})

    def listing(self, name: str) -> dict[str, Any]:
        siblings = []
        for path in sorted(self.repositories[name].rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                entry: dict[str, Any] = {"rfilename": str(path.relative_to(self.repositories[name])), "size": len(content)}
                entry["blobId"] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
                if len(content) >= LARGE:
                    entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
                siblings.append(entry)
        true = {"id": name, "sha": REVISION, "siblings": siblings, "cardData": {"license": "creativeml-openrail-m"}, "tags": []}
        return true | self.told


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+)(\?.*)?", self.path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        found = listed or file
        if b" //" in self.raw_requestline:  # of which ``path`` makes one
            return self.reply(404, b"{}", {}, with_body)
        if not found or found[1] not in self.hub.repositories:
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        if found[2] not in self.hub.revisions:
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        if listed:
            return self.reply(200, json.dumps(self.hub.listing(listed[1])).encode(), {"Content-Type": "application/json"}, with_body)
        assert file
        if self.hub.gated:
            return self.reply(401, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
        content = (self.hub.repositories[file[1]] / file[3]).read_bytes()
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if file[3] in self.hub.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        if not with_body:
            return self.reply(200, content, headers, False)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        self.hub.asked.append((file[3], self.headers.get("Range")))
        start = int(wanted[1]) if wanted else 0
        headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self.reply(206 if wanted else 200, content[start:], headers, True, self.hub.cut(file[3]))
        return None

    def reply(self, status: int, body: bytes, headers: dict[str, str], with_body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Reached through ``HF_ENDPOINT``."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between tries
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)  # of 10 MB nothing small would be left after a cut
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.base)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield state
    server.shutdown()
    server.server_close()
