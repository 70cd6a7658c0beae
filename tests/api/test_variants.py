import pytest
from pydantic import ValidationError

from service.api.schemas import RenderQuery
from service.api.variants import Variants
from service.errors import BadParameter
from service.imaging.resizing import Box
from service.settings import Settings

ID = "a" * 26


def meant(variants: Variants, **query: str) -> str:
    """The address that a query leads to."""
    return variants.variant(RenderQuery.model_validate(query), "webp").path(ID, "webp", 1).removeprefix(f"/render/{ID}")


def test_sizes_can_be_listed() -> None:
    variants = Variants([320, 640], {}, False)
    assert meant(variants, w="320", dpr="2") == ".webp?w=640"
    for query in ({"w": "321"}, {"w": "320", "h": "100"}, {"w": "640", "dpr": "2"}):
        with pytest.raises(BadParameter, match="320, 640"):
            meant(variants, **query)
    assert meant(variants, q="30") == ".webp?q=30"


@pytest.mark.parametrize(("query", "words"), [("dpr=5&w=5", "1 to 4.99, with two decimals"), ("fit=cover&w=20", "fit=cover needs w and h")])
def test_what_is_wrong_is_said_in_the_words_of_an_address(query: str, words: str) -> None:
    with pytest.raises(BadParameter, match=words):
        Variants([], {}, False).address(f"/render/{ID}.webp?{query}", 1)


def test_presets() -> None:
    variants = Variants([320], {"thumb": {"w": 64, "h": 48, "fit": "cover", "q": 60}}, False)
    variant = variants.variant(RenderQuery(preset="thumb"), "webp")
    assert variant.options("webp").box == Box(64, 48, "cover")
    assert variant.options("webp").quality == 60
    assert meant(variants, preset="thumb") == ".webp?preset=thumb"
    assert meant(variants, w="320") == ".webp?w=320"
    with pytest.raises(BadParameter, match="stands alone"):
        meant(variants, preset="thumb", w="320")
    with pytest.raises(BadParameter, match="there are: thumb"):
        meant(variants, preset="large")


def test_presets_only() -> None:
    variants = Variants([], {"thumb": {"w": 64}}, True)
    assert meant(variants, preset="thumb") == ".webp?preset=thumb"
    assert meant(variants) == ".webp"
    assert meant(variants, format="jpg") == ".webp"
    for query in ({"w": "64"}, {"q": "80"}, {"steps": "0"}):
        with pytest.raises(BadParameter, match="preset=thumb"):
            meant(variants, **query)


@pytest.mark.parametrize("name", ["", "big picture", "größe", "a&b", "a" * 65])
def test_a_preset_has_a_name_that_an_address_can_hold(name: str) -> None:
    with pytest.raises(ValidationError, match="presets"):
        Settings(presets={name: {"w": 64}})


@pytest.mark.parametrize("preset", [{"w": 0}, {"fit": "cover"}, {"width": 5}, {"fit": "crop", "w": 1, "h": 1}, {"q": "high"}])
def test_a_preset_that_cannot_be_stops_the_start(preset: dict[str, int | str]) -> None:
    with pytest.raises(BadParameter, match="preset 'broken'"):
        Variants([], {"broken": preset}, False)
