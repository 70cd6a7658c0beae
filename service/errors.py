"""Every error a caller can meet, one small tree.

Raised where it is understood, turned into replies in one place (``service.api.problems``) and into exit codes in another
(``service.commands.terminal``).  ``kind`` is the stable name that API clients match on.  Knows nothing of HTTP status codes.
"""

from __future__ import annotations

from typing import Any


class SdcError(Exception):
    """Something a caller should be told, in words that say what to do."""

    kind = "internal"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes, whatever their constructors take."""
        return _as_it_was, (type(self), self.args, vars(self))


class BadParameter(SdcError):
    """A parameter that is unknown, malformed or contradicts another."""

    kind = "bad-parameter"


class UnsupportedInput(SdcError):
    """Bytes that are not a picture of any accepted type."""

    kind = "unsupported-input"


class UndecodablePicture(SdcError):
    """A picture that is truncated or damaged."""

    kind = "undecodable-picture"


class AnimatedPicture(SdcError):
    """More than one frame."""

    kind = "animated-picture"


class TooManyPixels(SdcError):
    """More than may be; ``max_pixels`` says how many, where it is not one side that is too long."""

    kind = "too-many-pixels"

    def __init__(self, detail: str, max_pixels: int | None = None) -> None:
        super().__init__(detail)
        self.max_pixels = max_pixels


class TooManyBytes(SdcError):
    kind = "too-many-bytes"


class UploadTooSlow(SdcError):
    """The body did not arrive at the pace that is asked for."""

    kind = "upload-too-slow"


class SizeUnreachable(SdcError):
    """No step brings the file under ``max_bytes``."""

    kind = "size-unreachable"

    def __init__(self, detail: str, best_bytes: int) -> None:
        super().__init__(detail)
        self.best_bytes = best_bytes


class MethodUnavailable(SdcError):
    """A method that this service's model has not."""

    kind = "method-unavailable"


class BadBlob(SdcError):
    """Bytes that claim to be an ``.sdc`` and cannot be one."""

    kind = "bad-blob"


class NotABlob(BadBlob):
    """The magic number is missing."""

    kind = "not-a-blob"


class UnknownVersion(BadBlob):
    kind = "unknown-version"


class CorruptBlob(BadBlob):
    """Truncated, or its checksum does not fit."""

    kind = "corrupt-blob"


class WrongModel(BadBlob):
    """A sound blob of a model or entropy profile that is not installed here."""

    kind = "wrong-model"


class NotFound(SdcError):
    kind = "not-found"


class Gone(SdcError):
    """An id that was deleted."""

    kind = "gone"


class PreconditionFailed(SdcError):
    """What is stored is not what the caller takes it for."""

    kind = "precondition-failed"


class RangeNotSatisfiable(SdcError):
    """A range of bytes beyond the end."""

    kind = "range-not-satisfiable"

    def __init__(self, detail: str, size: int) -> None:
        super().__init__(detail)
        self.size = size


class Unauthorized(SdcError):
    """No key, or one that nobody has."""

    kind = "unauthorized"


class Forbidden(SdcError):
    kind = "forbidden"


class BadSignature(Forbidden):
    """The signature of an address is missing or of another one."""

    kind = "bad-signature"


class SignatureExpired(Forbidden):
    kind = "signature-expired"


class QuotaExceeded(SdcError):
    """More requests than a key has in a minute."""

    kind = "quota-exceeded"

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Overloaded(SdcError):
    """Come back later: the queue is full or the service is stopping."""

    kind = "overloaded"

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class DeadlineMissed(Overloaded):
    """The caller's deadline is sooner than its picture can be done, or passed before its turn came."""

    kind = "deadline-missed"


def first_line(error: BaseException) -> str:
    """What an error of others says, without what follows."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class StoreUnavailable(SdcError):
    """The store failed, refused, or is left alone because it did not answer."""

    kind = "store-unavailable"

    @property
    def own_words(self) -> str | None:
        """What the store said itself, if it did."""
        return None if self.__cause__ is None or isinstance(self.__cause__, TimeoutError) else first_line(self.__cause__)

    @property
    def in_full(self) -> str:
        """With the store's own words, for whoever runs the program; they are nothing for callers, for they name keys and addresses."""
        return f"{self.detail}: {self.own_words}" if self.own_words else self.detail


class StoreTooSlow(StoreUnavailable):
    """The store did not answer in time."""

    kind = "store-too-slow"


class DeviceFailed(SdcError):
    """The model produced no usable result for this item."""

    kind = "device-failed"


class OutOfMemory(DeviceFailed):
    """Too little memory on the device for this picture, alone."""

    kind = "out-of-memory"


class DeviceLost(DeviceFailed):
    """The device answers nothing any more in this process: a GPU after an illegal access, or one that fell off its bus."""


class NoDevice(SdcError):
    """The device that was asked for is not there."""

    kind = "no-device"


class BadModel(SdcError):
    """A model folder that cannot be loaded."""

    kind = "bad-model"


def _as_it_was(kind: type[SdcError], args: tuple[Any, ...], state: dict[str, Any]) -> SdcError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error
