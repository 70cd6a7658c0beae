"""What a benchmark found, as data: the schemas of ``report.json``.  Tables, curves and pages are made of these and of nothing else.

Knows how nothing was measured, and draws nothing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import statistics
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import features
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveInt

from service import __version__
from service.bench.pictures import machine
from service.comparison.metrics import HIGHER_IS_BETTER

OURS = "sdc"
METRICS = ("psnr", "ms_ssim", "ssimulacra2", "feature")
"""fields of ``Row``, in the order of ``service.comparison.metrics.NAMES``"""
SIGNS = np.where(HIGHER_IS_BETTER, 1, -1)
LIBRARIES = ("torch", "diffusers", "numpy", "constriction", "mozjpeg-lossless-optimization", "pytorch-msssim", "ssimulacra2")


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class About(_Data):
    """Where, when and with what."""

    made: str = Field(description="UTC, ISO 8601, to the minute.")
    machine: str
    sdc: str = Field(description="Version of the program.")
    model: str = Field(description="Name, version, size, number format and device.")
    model_identity: str = Field(description="Hexadecimal, as blobs carry it.")
    versions: dict[str, str] = Field(description="Of the libraries that had a part in it, by name.")


class Sized(_Data):
    """A picture that was measured."""

    name: str
    width: PositiveInt
    height: PositiveInt


class Row(_Data):
    """One picture by one codec at one size."""

    picture: str
    codec: str
    max_bytes: PositiveInt = Field(description="The size that was asked of sdc, for 512x512 pixels; other pictures in proportion.")
    bytes: PositiveInt = Field(description="Of the whole file, header included.")
    psnr: FiniteFloat = Field(description="dB; 99 for equal pictures.")
    ms_ssim: FiniteFloat
    ssimulacra2: FiniteFloat
    feature: NonNegativeFloat = Field(description="Feature distance; lower is better.")
    encode_ms: NonNegativeFloat = Field(description="Pixels to file.")
    decode_ms: NonNegativeFloat = Field(description="File to pixels.")


class Refusal(_Data):
    """A picture that sdc could not make so small.  No codec has a row for it at this size."""

    picture: str
    max_bytes: PositiveInt
    best_bytes: PositiveInt


class RateReport(_Data):
    """``report.json`` of ``sdc bench rd``: every figure of every picture, codec and size."""

    kind: Literal["rate-distortion"] = "rate-distortion"
    about: About
    images: str = Field(description="Name of the folder of pictures.")
    crop: NonNegativeInt = Field(description="Side of the centre crops; 0 for whole pictures.")
    sizes: list[PositiveInt] = Field(description="Each ``max_bytes``, rising.")
    shown_size: PositiveInt = Field(description="The size at which pictures are ranked and shown.")
    codecs: list[str] = Field(description="sdc first.")
    pictures: list[Sized]
    rows: list[Row]
    refused: list[Refusal]


class Percentiles(_Data):
    """Of times, ms."""

    median: NonNegativeFloat
    p95: NonNegativeFloat
    p99: NonNegativeFloat


class Stage(_Data):
    """Time in one stage, by the service's own histogram."""

    name: str
    count: NonNegativeInt
    mean_ms: NonNegativeFloat
    p95_ms: NonNegativeFloat = Field(description="Between the bounds of a bucket linearly.")


class Second(_Data):
    """What was answered in one second of the overload."""

    at: NonNegativeInt = Field(description="Seconds since the first request.")
    accepted: NonNegativeInt
    pixels: NonNegativeInt | None = Field(default=None, description="Of the accepted pictures; null in reports that did not count them.")
    refused: NonNegativeInt
    median_ms: NonNegativeFloat | None = Field(description="Of the accepted; null where there were none.")
    p95_ms: NonNegativeFloat | None


class Operation(_Data):
    """``compress`` or ``render`` under load."""

    bare: dict[int, NonNegativeFloat] = Field(description="Pictures a second without HTTP, by size of batch.")
    alike: dict[int, NonNegativeFloat] = Field(description="The same for pictures of one size.")
    alone: list[NonNegativeFloat] = Field(description="Pictures a second of the bare loop in its best batches, in turn with ``http``.")
    http: list[NonNegativeFloat] = Field(description="Pictures a second over HTTP, more being asked for.")
    unloaded: Percentiles
    unloaded_count: NonNegativeInt | None = Field(default=None, description="Requests that it is of; null in reports that did not say.")
    deadline_ms: NonNegativeFloat
    probe_seconds: NonNegativeFloat = Field(description="Length of each try at a rate in the search for ``capacity``.")
    capacity: list[NonNegativeFloat] = Field(
        description="Requests a second with under 1 % refused, failed or unsent, before and after the overload."
    )
    offered: NonNegativeFloat = Field(description="Requests a second in the overload.")
    seconds: NonNegativeFloat = Field(description="Length of the overload.")
    accepted: NonNegativeInt
    refused: NonNegativeInt
    failed: NonNegativeInt
    lawless: NonNegativeInt = Field(description="503 without an integer Retry-After.")
    dropped: NonNegativeInt = Field(description="Requests that the load generator could not send in time.")
    latency: Percentiles = Field(description="Of the accepted in the overload.")
    refusal: Percentiles = Field(description="Of the refused in the overload.")
    grown_mib: FiniteFloat = Field(description="Memory of the process after the overload, less before.")
    gauges: dict[str, FiniteFloat] = Field(description="After the overload.")
    batches: dict[str, NonNegativeInt] = Field(description="Batches in the overload, by upper bound of their size.")
    stages: list[Stage] = Field(description="Of the overload.")
    timeline: list[Second] = Field(description="Of the overload.")

    @property
    def in_time(self) -> list[Second]:
        """The overload itself, without the wait for its last replies."""
        return [second for second in self.timeline if second.at < self.seconds]

    @property
    def goodput(self) -> float:
        """Pictures a second that came out of the overload while it lasted."""
        return sum(second.accepted for second in self.in_time) / self.seconds

    @property
    def goodput_megapixels(self) -> float | None:
        """The same in megapixels; None where they were not counted."""
        counted = [second.pixels for second in self.in_time if second.pixels is not None]
        return sum(counted) / 1e6 / self.seconds if counted else None

    @property
    def accepted_megapixels(self) -> float | None:
        """Of an accepted picture, in the mean: less than of those sent where large ones are refused first."""
        return self.goodput_megapixels / self.goodput if self.goodput_megapixels and self.goodput else None

    @property
    def http_share(self) -> float:
        """``http`` of ``alone``: the median of the pairs, because the speed of a machine may drift meanwhile."""
        return statistics.median(http / alone for http, alone in zip(self.http, self.alone, strict=True))


class HungUp(_Data):
    """Clients that left, beside a calm flow of clients that stayed."""

    clients: NonNegativeInt
    seconds: NonNegativeFloat
    inside: NonNegativeInt = Field(description="Of them, how many had a place when they left.")
    computed: int = Field(description="Of those, how many had reached the device.")
    served: NonNegativeInt
    refused: NonNegativeInt
    failed: NonNegativeInt
    gauges: dict[str, FiniteFloat]


class LoadReport(_Data):
    """``report.json`` of ``sdc bench load``."""

    kind: Literal["load"] = "load"
    about: About
    pictures: str = Field(description="What was sent, in words.")
    megapixels: NonNegativeFloat = Field(description="Of a picture sent, in the mean.")
    alike_side: PositiveInt = Field(description="Of the square pictures of ``alike``, pixels.")
    saturation: NonNegativeFloat = Field(
        description="Times the bare loop's pictures a second: what HTTP is asked for to see how many it can do."
    )
    deadline_factor: NonNegativeFloat = Field(description="Times the unloaded p95: the deadline.")
    operations: dict[str, Operation]
    hung_up: HungUp
    idle_share: NonNegativeFloat = Field(description="Of one processor, while nobody asks.")
    idle_seconds: NonNegativeFloat


def about(model: str, identity: bytes) -> About:
    """This machine, now."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    pillow = {"pillow": importlib.metadata.version("pillow")}
    for module in ("libjpeg_turbo", "webp", "avif"):
        found = features.version(module)
        if found is not None:
            pillow[f"pillow: {module}"] = found
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    return About(made=made, machine=machine(), sdc=__version__, model=model, model_identity=identity.hex(), versions=versions | pillow)


@dataclass(frozen=True)
class Summary:
    """One codec at one size, over all pictures; qualities in the order of ``METRICS``."""

    codec: str
    n: int
    bytes: dict[str, float]
    """mean, median, worst (largest)"""
    bpp: float
    """mean of the files' bits over the pictures' pixels"""
    qualities: dict[str, list[float]]
    """mean, median, worst"""
    wins: list[int] | None
    """on how many pictures sdc is better, for each metric; None for sdc itself"""
    encode_ms: float
    """median"""
    decode_ms: float


def qualities(rows: list[Row]) -> npt.NDArray[np.float64]:
    """(n, 4), in the order of ``METRICS``."""
    return np.array([[getattr(row, metric) for metric in METRICS] for row in rows])


def summaries(report: RateReport, size: int) -> list[Summary]:
    """Every codec at one size, in the report's order; none where all pictures were refused."""
    pixels = {each.name: each.width * each.height for each in report.pictures}
    mine = qualities(of(report, OURS, size))
    found = []
    for codec in report.codecs:
        rows = of(report, codec, size)
        if not rows:
            continue
        values, files = qualities(rows), np.array([row.bytes for row in rows])
        wins = None if codec == OURS else [int(count) for count in ((mine - values) * SIGNS > 0).sum(0)]
        worst = np.where(HIGHER_IS_BETTER, values.min(0), values.max(0))
        summary = Summary(
            codec=codec,
            n=len(rows),
            bytes={"mean": float(files.mean()), "median": float(np.median(files)), "worst": float(files.max())},
            bpp=float(np.mean([8 * row.bytes / pixels[row.picture] for row in rows])),
            qualities={"mean": values.mean(0).tolist(), "median": np.median(values, 0).tolist(), "worst": worst.tolist()},
            wins=wins,
            encode_ms=float(np.median([row.encode_ms for row in rows])),
            decode_ms=float(np.median([row.decode_ms for row in rows])),
        )
        found.append(summary)
    return found


def of(report: RateReport, codec: str, size: int) -> list[Row]:
    """The rows of one codec at one size, in the order of the pictures."""
    return [row for row in report.rows if row.codec == codec and row.max_bytes == size]
