"""What the simulator is fed with: how long each part of a picture takes, how long a process takes to get ready, and on what machine.

A file of it can be written and read again, so that a day can be repeated on a machine that is not the one that was measured.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.batching.waiting import Lane
from service.errors import BadParameter

Operation = Literal["compress", "render"]
Seconds = list[float]
"""as often as it was measured; the simulator draws from these"""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Picture(Part):
    """One kind of request, alone on the machine."""

    operation: Operation
    shape: str
    """requests of one operation and shape can share a batch"""
    pixels: int = Field(gt=0)
    """padded"""
    lane: Lane = "interactive"
    begin_s: Seconds = Field(min_length=1)
    """of the processor, before the device: open, read"""
    alone_s: Seconds = Field(min_length=1)
    """of the device, by itself"""
    full_s: Seconds = Field(min_length=1)
    """of the device, a full batch of these"""
    finish_s: Seconds = Field(min_length=1)
    """of the processor, after the device: code, write"""
    outside_s: Seconds = Field(min_length=1)
    """of the reply, neither of which: HTTP, the store"""

    @cached_property
    def unloaded_s(self) -> float:
        """Mean from request to reply where nobody else asks."""
        return sum(map(fmean, (self.begin_s, self.alone_s, self.finish_s, self.outside_s)))


class Measured(Part):
    """One machine and one model."""

    machine: str
    model: str
    max_batch: int = Field(ge=1)
    cpu_workers: int = Field(ge=1)
    ready_s: float = Field(gt=0)
    """from the start of a process to its first good /readyz"""
    contention: dict[Operation, float]
    """by what factor everything takes longer when device and processor are both busy"""
    pictures: list[Picture] = Field(min_length=1)

    def of(self, operation: Operation) -> list[Picture]:
        return [each for each in self.pictures if each.operation == operation]


def read_measured(path: Path) -> Measured:
    """Raises BadParameter for a file that ``sdc bench fleet --measure`` has not written."""
    try:
        return Measured.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadParameter(f"cannot read {path}: {error.strerror}; --measure writes it") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise BadParameter(f"{path} is not what --measure writes: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def write_measured(path: Path, measured: Measured) -> None:
    """Times in whole microseconds: nothing here is known better."""
    rounded = {"begin_s", "alone_s", "full_s", "finish_s", "outside_s"}
    pictures = [
        each.model_copy(update={name: [round(value, 6) for value in getattr(each, name)] for name in rounded}) for each in measured.pictures
    ]
    path.write_text(measured.model_copy(update={"pictures": pictures}).model_dump_json(indent=1) + "\n")
