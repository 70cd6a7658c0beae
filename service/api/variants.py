"""Which variant of a picture an address means, and the one spelling each variant has.

A cache knows addresses and not meanings: ``?w=300&q=80`` and ``?q=80&w=300`` would be kept twice, and a stranger could have a picture
made under as many names as they like.  So parameters have an order, defaults are left out, and every other spelling is redirected.
Knows nothing of requests: parameters in, options and spelling out.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from urllib.parse import parse_qsl, unquote

from pydantic import ValidationError

from service.api.schemas import RenderQuery, SizedQuery, complaint, once_each
from service.errors import BadParameter, NotFound
from service.imaging.resizing import LARGEST_BOX
from service.imaging.writing import DEFAULT_QUALITY, FORMATS
from service.options import RenderOptions
from service.storage.blobs import check_id


@dataclass(frozen=True)
class Variant:
    """What an address asks for."""

    sized: SizedQuery
    extension: str | None
    """of the address; None where the client's Accept header decides"""
    preset: str | None = None

    def options(self, extension: str) -> RenderOptions:
        """How to make it in this format."""
        return RenderOptions(extension, self.sized.steps, self.sized.q, self.sized.box)

    def path(self, blob_id: str, extension: str | None, default_steps: int) -> str:
        """The one address of this variant: with an extension of that format, without one of whatever the client accepts."""
        query = f"preset={self.preset}" if self.preset else "&".join(self._parameters(extension, default_steps))
        return f"/render/{blob_id}{'.' + extension if extension else ''}{'?' + query if query else ''}"

    def _parameters(self, extension: str | None, default_steps: int) -> list[str]:
        sized, said = self.sized, []
        if sized.w is not None:
            said.append(f"w={sized.w}")
        if sized.h is not None:
            said.append(f"h={sized.h}")
        if sized.fit != "inside":
            said.append(f"fit={sized.fit}")
        if sized.q != DEFAULT_QUALITY and not (extension and FORMATS[extension].lossless):
            said.append(f"q={sized.q}")
        if sized.steps is not None and sized.steps != default_steps:
            said.append(f"steps={sized.steps}")
        return said


@dataclass(frozen=True)
class Address:
    """A picture's address, understood."""

    blob_id: str
    variant: Variant
    query: RenderQuery
    canonical: str
    """its one spelling, without a signature"""


class Variants:
    """Which variants this service makes.

    Args:
        sizes: widths and heights that may be asked for; none means any.
        presets: parameters of a render by name.
        presets_only: nothing but presets may be asked for.

    Raises BadParameter for a preset that cannot be.
    """

    def __init__(self, sizes: list[int], presets: dict[str, dict[str, int | str]], presets_only: bool) -> None:
        self._sizes, self._presets_only = frozenset(sizes), presets_only
        self._presets: dict[str, SizedQuery] = {}
        for name, parameters in presets.items():
            try:
                self._presets[name] = SizedQuery.model_validate({key: str(value) for key, value in parameters.items()})
                self._presets[name].box  # noqa: B018 - raises where it cannot be
            except BadParameter as error:
                raise BadParameter(f"SDC_PRESETS: preset '{name}': {error.detail}") from error
            except ValidationError as error:
                raise BadParameter(f"SDC_PRESETS: preset '{name}': {complaint(error.errors())}") from error

    def address(self, address: str, default_steps: int) -> Address:
        """Understand ``/render/<id>``, with an extension and parameters or without.

        Args:
            address: path and query as they came, percent-encoding and all.
            default_steps: U-Net steps where the address says nothing.

        Raises NotFound for what is no address of a picture, and BadParameter for parameters that mean nothing or are not allowed.
        """
        path, _, parameters = address.partition("?")
        path = unquote(path)
        if not path.startswith("/render/"):
            raise NotFound("the address of a picture is /render/ID, with an extension and parameters or without")
        name, dot, extension = path.removeprefix("/render/").partition(".")
        if dot and extension not in FORMATS:
            raise NotFound(f"no format '{extension[:20]}': use {', '.join(FORMATS)}")
        check_id(name)  # it goes into headers
        pairs = parse_qsl(parameters, keep_blank_values=True)
        once_each([name for name, _ in pairs])
        try:
            asked = RenderQuery.model_validate(dict(pairs))
        except ValidationError as error:
            raise BadParameter(complaint(error.errors())) from error
        variant = self.variant(asked, extension or None)
        return Address(name, variant, asked, variant.path(name, variant.extension, default_steps))

    def variant(self, query: RenderQuery, extension: str | None) -> Variant:
        """What a query means at an address with this extension; raises BadParameter where it means nothing or is not allowed."""
        extension = query.format or extension
        if query.preset is not None:
            if query.asked - {"preset"}:
                raise BadParameter("a preset stands alone: leave the other parameters out")
            if query.preset not in self._presets:
                raise BadParameter(f"there is no preset '{query.preset[:40]}'; there are: {', '.join(sorted(self._presets)) or 'none'}")
            return Variant(self._presets[query.preset], extension, query.preset)
        if self._presets_only and query.asked:
            raise BadParameter(f"this service renders presets only: use preset={'|'.join(sorted(self._presets)) or '(none is set)'}")
        width, height = (_times(side, query.dpr) for side in (query.w, query.h))
        if query.dpr is not None and width is None and height is None:
            raise BadParameter("dpr multiplies w and h: give one of them")
        for side in (width, height):
            if side is not None and self._sizes and side not in self._sizes:
                raise BadParameter(f"{side} is none of the sizes of this service: {', '.join(map(str, sorted(self._sizes)))}")
        sized = SizedQuery.model_construct(w=width, h=height, fit=query.fit, q=query.q, steps=query.steps)
        sized.box  # noqa: B018 - raises where it cannot be
        return Variant(sized, extension)


def _times(side: int | None, dpr: str | None) -> int | None:
    """In decimal arithmetic: 333 * 1.5 is 500 everywhere."""
    if side is None or dpr is None:
        return side
    product = int((side * Decimal(dpr)).quantize(Decimal(1), ROUND_HALF_UP))
    if product > LARGEST_BOX:
        raise BadParameter(f"w and h times dpr may be {LARGEST_BOX} at most")
    return product
