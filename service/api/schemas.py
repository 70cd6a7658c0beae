"""Query parameters and JSON bodies.  Queries are strict: an unknown parameter is an error, so that one meaning has one spelling."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.batching.waiting import Lane
from service.codec.methods import Method
from service.errors import BadParameter
from service.imaging.resizing import LARGEST_BOX, Box, Fit
from service.imaging.writing import DEFAULT_QUALITY
from service.options import MOST_STEPS, SMALLEST_MAX_BYTES, parse_steps
from service.storage.keeping import TAG_PATTERN, check_tag


def _digits(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,12}", value, re.ASCII):
        raise ValueError("must be a whole number in digits")
    return value


DIGITS = BeforeValidator(_digits)
"""one spelling of a number: no signs, underscores, points or spaces; stands last, or bounds do not get into the OpenAPI document"""
Side = Annotated[int, Field(ge=1, le=LARGEST_BOX), DIGITS]
Quality = Annotated[int, Field(ge=1, le=100), DIGITS]


def _steps(value: object) -> object:
    try:
        return parse_steps(str(value))
    except BadParameter as error:
        raise ValueError(error.detail.removeprefix("steps ")) from error


Steps = Annotated[
    int | Literal["article"],
    BeforeValidator(_steps, json_schema_input_type=Annotated[int, Field(ge=0, le=MOST_STEPS)] | Literal["article"]),
]


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


def once_each(names: list[str]) -> None:
    """Raise BadParameter for a parameter that is given twice: one meaning, one spelling."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise BadParameter(f"parameter '{twice[0][:40]}' is given more than once")


def complaint(errors: Sequence[Any]) -> str:
    """What is wrong with a query, in words, by the first of pydantic's errors."""
    first = errors[0]
    place = first["loc"][1:] if len(first["loc"]) > 1 else first["loc"]  # of a request, "query" comes first
    name = ".".join(str(part) for part in place)[:40]
    return f"unknown parameter '{name}'" if first["type"] == "extra_forbidden" else f"{name}: {first['msg'].removeprefix('Value error, ')}"


def _tag(value: object) -> object:
    try:
        return check_tag(str(value))
    except BadParameter as error:
        raise ValueError(error.detail) from error


def _dpr(value: object) -> object:
    if not re.fullmatch(DPR_PATTERN, str(value)):
        raise ValueError("must be 1 to 4.99, with two decimals at most")
    return value


DPR_PATTERN = r"^[1-4](\.[0-9]{1,2})?$"
Dpr = Annotated[str, Field(pattern=DPR_PATTERN), BeforeValidator(_dpr)]
Tag = Annotated[str, Field(pattern=TAG_PATTERN), BeforeValidator(_tag)]
TAG_FIELD: Any = Field(None, description="A purge tag of your own: renders carry it beside the id.  No part of the id.")


class RateQuery(Query):
    """What decides on the size of a file."""

    max_bytes: Annotated[int, Field(ge=SMALLEST_MAX_BYTES, le=1 << 30), DIGITS] | None = Field(
        None, description="Bytes of the whole file at most, or the reply is 422."
    )
    quality: Annotated[int, Field(ge=0, le=100), DIGITS] | None = Field(
        None, description="0 to 100, instead of max_bytes; 50 when neither is given."
    )


class CompressQuery(RateQuery):
    method: Method = Field(
        "latent", description="Coding method; `palette` is that of Bühlmann's article, for models whose latent has four channels, else 422."
    )
    dither: Literal["0", "1"] = Field(
        "0", description="1: subtractive dither, so that the quantiser's error is noise to the U-Net; costs some rate."
    )
    tag: Tag | None = TAG_FIELD
    lane: Lane | None = Field(
        None, description="`bulk` yields to interactive requests; by default large pictures are bulk.  No part of the id."
    )


class SizedQuery(Query):
    """Size and quality of a picture."""

    w: Side | None = Field(None, description="Width in pixels; a picture is never enlarged.")
    h: Side | None = Field(None, description="Height in pixels.")
    fit: Fit = Field(
        "inside",
        description="`inside` the box, `cover` it and be cut, `contain`: inside, on a ground of exactly that size, or `fill`: stretched.",
    )
    q: Quality = Field(DEFAULT_QUALITY, description="Quality of a lossy format.")
    steps: Steps | None = Field(
        None,
        description="U-Net steps; 0: auto-encoder alone; `article`: as Bühlmann's article cleans, for latents of four channels, else 422.",
    )

    @property
    def box(self) -> Box | None:
        """Raises BadParameter for a fit that needs a side which is not given."""
        if self.fit != "inside" and (self.w is None or self.h is None):
            raise BadParameter(f"fit={self.fit} needs w and h")
        return None if self.w is None and self.h is None else Box(self.w, self.h, self.fit)


Extension = Literal["png", "webp", "jpg", "avif"]


class RenderQuery(SizedQuery):
    dpr: Dpr | None = Field(None, description="Multiplies w and h: 1 to 4.99; redirects to the product.")
    format: Extension | None = Field(None, description="Redirects to the address with that extension.")
    preset: str | None = Field(None, description="A variant that the service names; instead of all other parameters.")
    expires: Annotated[int, Field(ge=0), DIGITS] | None = Field(None, description="Of a signed address: seconds since 1970.")
    key: Annotated[str, Field(max_length=32)] | None = Field(None, description="Of a signed address: name of the key.")
    sig: Annotated[str, Field(max_length=64)] | None = Field(None, description="Of a signed address: HMAC-SHA-256 in base64url.")

    @property
    def asked(self) -> set[str]:
        """Names of the parameters that say something of the picture."""
        return self.model_fields_set - {"format", "expires", "key", "sig"}


class DecompressQuery(SizedQuery):
    format: Extension | None = Field(None, description="Instead of the Accept header.")


class UploadQuery(Query):
    tag: Tag | None = TAG_FIELD


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
    preview: str | None = Field(None, description="Data URI of a few pixels, under 600 characters; where the blob was made here.")
    color: str | None = Field(None, description="Dominant colour, `#rrggbb`; where the blob was made here.")
    links: Links


class BlobDetails(BlobInfo):
    step: float = Field(description="Quantiser step, in units of the normalised latent.")
    alpha: bool
    coded_width: int = Field(description="Pixels. Less than `width` where few bytes show more of a smaller picture, enlarged.")
    coded_height: int = Field(description="Pixels.")
    tiled: bool
    sections: dict[str, int] = Field(description="Bytes of each section.")
    tags: list[str] = Field(description="Purge tags of callers.")
    source_bytes: int | None = Field(None, description="Size of the photo it was made from, where it was made here.")


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
