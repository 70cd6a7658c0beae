"""Query parameters and JSON bodies.  Queries are strict: an unknown parameter is an error, so that one meaning has one spelling."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.batching.waiting import Lane

MOST_STEPS = 8


def _digits(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,12}", value, re.ASCII):
        raise ValueError("must be a whole number in digits")
    return value


WholeNumber = Annotated[int, BeforeValidator(_digits)]
"""one spelling: no signs, underscores, points or spaces"""


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CompressQuery(Query):
    max_bytes: WholeNumber | None = Field(None, ge=32, le=1 << 30, description="Bytes of the whole file at most, or the reply is 422.")
    quality: WholeNumber | None = Field(None, ge=0, le=100, description="0 to 100, instead of max_bytes; 50 when neither is given.")
    method: Literal["latent"] = Field("latent", description="Coding method.")
    lane: Lane | None = Field(
        None, description="`bulk` yields to interactive requests; by default large pictures are bulk.  No part of the id."
    )


class RenderQuery(Query):
    steps: WholeNumber | None = Field(None, ge=0, le=MOST_STEPS, description="U-Net steps; 0: auto-encoder alone.")
    q: WholeNumber = Field(80, ge=1, le=100, description="Quality of a lossy format.")


class DecompressQuery(RenderQuery):
    format: Literal["png", "webp", "jpg", "avif"] | None = Field(None, description="Instead of the Accept header.")


class NoQuery(Query):
    pass


class Links(BaseModel):
    render: str
    png: str
    webp: str
    blob: str
    info: str


class BlobInfo(BaseModel):
    """What a blob says of itself."""

    id: str
    bytes: int
    width: int
    height: int
    bpp: float = Field(description="Bits per pixel of the whole file.")
    method: str
    model: str
    links: Links


class BlobDetails(BlobInfo):
    step: float = Field(description="Quantiser step, in units of the normalised latent.")
    alpha: bool
    tiled: bool
    sections: dict[str, int] = Field(description="Bytes of each section.")
    source_bytes: int | None = Field(None, description="Size of the photo it was made from, where it was made here.")


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
