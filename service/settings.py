"""Every knob of the service, in one place.  Environment variables begin with ``SDC_``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

BUNDLED_MODEL = Path(__file__).parent / "models" / "bundled"


def _data() -> Path:
    """By the XDG base directory specification: a user's own, and nobody clears it away as /tmp and /var/tmp are."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "sdc"


KUBERNETES = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?")
"""variables that it sets for every service beside a pod; so it does ``NAME_PORT``, to an address"""

Scope = Literal["compress", "render", "admin"]


class ApiKey(BaseModel):
    """A key and what it is good for."""

    model_config = ConfigDict(extra="forbid")

    secret: SecretStr = Field(min_length=16)
    scopes: list[Scope]
    per_minute: int | None = Field(None, ge=1, description="Requests; each replica counts its own.")


class Settings(BaseSettings):
    """Read from the environment; a value that does not fit stops the start with its name."""

    model_config = SettingsConfigDict(env_prefix="SDC_", env_ignore_empty=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.  Loopback unless told otherwise: without keys anybody may compress.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0: any that is free.")
    models_dir: Path = Field(
        default_factory=lambda: _data() / "models",
        description="Where `sdc models pull` keeps models.",
        json_schema_extra={"default": "~/.local/share/sdc/models"},
    )
    model: Path = Field(
        BUNDLED_MODEL,
        description="The default model: its folder, or its name where it is installed.",
        json_schema_extra={"default": BUNDLED_MODEL.name},
    )
    other_models: list[Path] = Field(
        default_factory=list,
        description="Models whose files are rendered too, as JSON: folders or names; each is loaded when a file first needs it, and stays.",
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the networks; auto: bf16 where the device computes in it, fp16 on older GPUs, else fp32."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile for the sizes warmed up at the start, minutes longer, in place of the kernels that a GPU runs "
        "otherwise; auto: of large models on a GPU that cannot run those.",
    )
    store_url: str = Field(
        default_factory=lambda: (_data() / "store").absolute().as_uri(),
        description="A folder, memory:///, or anything obstore reads (s3://bucket/prefix).",
        json_schema_extra={"default": "file://~/.local/share/sdc/store"},
    )
    store_timeout_s: float = Field(10.0, gt=0, description="Seconds the store may take to answer before a request is 504.")
    render_cache_bytes: int = Field(
        1 << 30, ge=0, description="Of rendered pictures kept beside the blobs; 0: none.  On an object store a lifecycle rule bounds them."
    )
    lease_s: float = Field(
        10.0,
        ge=0,
        description="Of replicas that want the same render: how long they wait for the one that makes it.  0: each makes its own.",
    )
    render_memory_bytes: int = Field(64 << 20, ge=0, description="Of the pictures used last, kept in memory too; 0: none.")
    admin_key: Annotated[SecretStr, Field(min_length=16)] | None = Field(
        None, description="Bearer token that allows DELETE; without one DELETE is 403."
    )
    api_keys: dict[str, ApiKey] = Field(
        default_factory=dict,
        description='Who may compress, as JSON: {"shop": {"secret": "...", "scopes": ["compress"], "per_minute": 600}}, secrets of 16 '
        "characters at least; none: anybody.",
    )
    signing_keys: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")], Annotated[SecretStr, Field(min_length=16)]] = Field(
        default_factory=dict,
        description='Renders need an address signed by one of these, as JSON: {"k2": "...", "k1": "..."}, of 16 characters at least; the '
        "first signs.",
    )
    link_s: int = Field(7 * 86400, ge=60, description="How long the signed links of a reply last.")
    sizes: list[int] = Field(default_factory=list, description="Widths and heights that renders may be asked for, as JSON; empty: any.")
    presets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")], dict[str, int | str]] = Field(
        default_factory=dict, description='Renders with a name, as JSON: {"thumb": {"w": 320, "h": 320, "fit": "cover"}}.'
    )
    presets_only: bool = Field(False, description="Renders take `preset` and nothing else: a stranger cannot fill the cache.")
    cors_origins: list[str] = Field(
        default_factory=lambda: ["*"], description="Origins whose pages may read replies, as JSON; * is everybody, [] nobody."
    )
    max_pixels: int = Field(52_428_800, ge=1, description="Pixels of the largest picture accepted.")
    max_body_bytes: int = Field(64 << 20, ge=1024, description="Largest request body.")
    max_batch: int = Field(
        4,
        ge=1,
        le=64,
        description="Batches run at this size or alone; always alone where the bundled model runs by ncnn (a processor without bf16).",
    )
    max_queued_pixels: int = Field(64 << 20, ge=1, description="Pixels of pictures that may be in the service before more are refused.")
    max_delay_ms: float = Field(10.0, ge=0, le=1000, description="How long a batch waits for company while the device is busy.")
    slots: int = Field(
        64, ge=1, le=100_000, description="Requests that may be at work or waiting at once; the next is refused, its body unread."
    )
    max_bodies_bytes: int = Field(256 << 20, ge=1024, description="Bytes of bodies that may be held at once.")
    deadline_s: float = Field(120.0, gt=0, description="A request that cannot be answered within this time is refused.")
    cpu_workers: int = Field(2, ge=1, le=256, description="Threads for opening, coding and writing pictures.")
    coders: int | None = Field(
        None,
        ge=0,
        le=256,
        description="Processes that do the coding, 60 to 90 MB each; none given: one for each of those threads; 0: the threads do it.",
    )
    page: bool = Field(True, description="The page at / and POST /compare, which it needs.")
    compare_max_pixels: int = Field(1 << 20, ge=1, description="Largest picture that is compared: AVIF takes seconds for each megapixel.")
    compare_at_once: int = Field(2, ge=1, le=64, description="Comparisons at work at once; the next is refused.")
    compare_per_minute: int = Field(20, ge=1, description="Comparisons for each client address; each replica counts its own.")
    shutdown_s: int = Field(30, ge=1, description="Time given to requests in flight when the service is told to stop.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged; a request is `info`.")
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]",
        description="Base address of an OpenTelemetry collector, http://collector:4318, that gets traces; none: there are none.",
    )

    @model_validator(mode="after")
    def _models_by_name(self) -> Settings:
        # what is assigned counts as given: a default stays one
        if "model" in self.model_fields_set:
            self.model = self._folder(self.model)
        if "other_models" in self.model_fields_set:
            self.other_models = [self._folder(model) for model in self.other_models]
        return self

    def _folder(self, model: Path) -> Path:
        """Of an installed model, where it is named; what is no name is taken as it is."""
        if len(model.parts) == 1 and not model.is_dir():
            for folder in (BUNDLED_MODEL.parent / model, self.models_dir / model):
                if folder.is_dir():
                    return folder
        return model


def misspelt(environment: Mapping[str, str]) -> list[str]:
    """Of each variable that begins like a setting and is none, a line that says so; pydantic passes over them in silence."""
    settings = [f"SDC_{name.upper()}" for name in Settings.model_fields]
    told = []
    for name, value in environment.items():
        upper = name.upper()
        known = upper in settings or KUBERNETES.fullmatch(upper) or (upper.endswith("_PORT") and "://" in value)
        if upper.startswith("SDC_") and value and not known:
            nearest = difflib.get_close_matches(upper, settings, 1)
            told.append(f"{name} is no setting" + (f": is {nearest[0]} meant?" if nearest else ""))
    return told
