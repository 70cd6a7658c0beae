"""The page in a real browser: Debian's chromium, driven by Playwright, against a real service with the bundled model."""

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from service.bench.serving import Server, serving
from tests.conftest import Plane, make_picture

pytestmark = pytest.mark.system
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 120_000
WIDE, NARROW = (1280, 900), (360, 740)
MAX_PIXELS = 60_000


def jpeg(pixels: Plane) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=92)
    return out.getvalue()


@pytest.fixture(scope="module")
def photograph(photo: Plane) -> bytes:
    """The middle of a photograph, 240x180: a comparison of it takes a second or two."""
    return jpeg(np.ascontiguousarray(photo[60:240, 100:340]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    with serving(folder, folder / "log", SDC_COMPARE_PER_MINUTE="10000", SDC_COMPARE_MAX_PIXELS=str(MAX_PIXELS)) as server:
        yield server


@pytest.fixture(scope="module")
def recorded(server: Server, photograph: bytes) -> bytes:
    """What the service says of it, for tests of what is done with that alone."""
    return httpx.post(f"{server.base}/compare?max_bytes=837", content=photograph, timeout=120).raise_for_status().content


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program, "make test-system installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, base: str, size: tuple[int, int] = WIDE, dark: bool = False, expected: str | None = None) -> Iterator[Page]:
    """The page, in a fresh profile.  At the end nothing has left the origin, and the console shows nothing but ``expected`` (a pattern)."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", has_touch=True, accept_downloads=True
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(base)
    try:
        yield page
    finally:
        context.close()
    assert not [url for url in asked if not url.startswith((f"{base}/", "data:", f"blob:{base}/"))]
    assert not [text for text in complaints if expected is None or not re.search(expected, text)]


def choose(page: Page, content: bytes, name: str = "cat.jpg") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": content})


def replay(page: Page, recorded: bytes) -> None:
    """Answer the next comparison with the recorded reply."""
    page.route("**/compare*", lambda route: route.fulfill(content_type="application/json", body=recorded), times=1)


def show(page: Page, photograph: bytes, recorded: bytes) -> Any:
    """Choose the photograph, and let the page have the recorded reply."""
    replay(page, recorded)
    return again(page, lambda: choose(page, photograph))


def settled(page: Page) -> None:
    """The comparison has been made and is shown."""
    expect(page.locator("#result")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#busy")).to_be_hidden(timeout=WAIT_MS)
    expect(page.locator("#problem")).to_be_hidden()


def again(page: Page, act: Callable[[], object]) -> Any:
    """Do something that makes the page compare, and wait for it; returns the reply."""
    with page.expect_response(lambda reply: "/compare" in reply.url, timeout=WAIT_MS) as reply:
        act()
    body = reply.value.json()
    settled(page)
    return body


def divider_at(page: Page) -> int:
    return int(page.get_attribute("#divider", "aria-valuenow") or "")


def places(page: Page) -> list[str]:
    found: list[str] = page.eval_on_selector_all(".sheet", "sheets => sheets.map(sheet => sheet.style.transform)")
    return found


def scale(page: Page) -> float:
    left, right = places(page)
    assert left == right
    found = re.search(r"scale\(([\d.]+)\)", left)
    assert found
    return float(found.group(1))


class Fingers:
    """On the page's screen."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)

    def __call__(self, kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self._session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touches})


def box_of(page: Page, selector: str) -> dict[str, float]:
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box
    return {**box}


def test_compare_download_and_curl(browser: Browser, server: Server, photograph: bytes, tmp_path: Path) -> None:
    with opened(browser, server.base) as page:
        reply = again(page, lambda: choose(page, photograph, "my cat's.jpg"))
        expect(page.locator("#figures thead th")).to_have_text([".sdc", "JPEG", "WebP", "AVIF"])
        row = page.locator("#figures tbody tr").first.locator("td")
        for index, entry in enumerate(reply["codecs"].values()):
            expect(row.nth(index)).to_contain_text(f"{entry['bytes']:,}")
        expect(page.locator("#right-badge")).to_have_text(f".sdc, {reply['codecs']['sdc']['bytes']:,} bytes")
        expect(page.locator("#left-badge")).to_have_text(f"Original, {len(photograph):,} bytes")
        expect(page.locator("#stages .bars")).to_have_count(2)
        assert page.get_attribute("#preview", "src") == reply["preview"]
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == "my cat's.sdc"
        downloaded = Path(download.value.path()).read_bytes()
        blob = httpx.post(
            f"{server.base}/compress?max_bytes={page.input_value('#bytes')}",
            content=photograph, headers={"accept": "application/vnd.sdc"}, timeout=60,
        )  # fmt: skip
        assert downloaded == blob.content
        (tmp_path / "my cat's.jpg").write_bytes(photograph)
        subprocess.run(page.inner_text("#curl"), shell=True, cwd=tmp_path, check=True, timeout=60)
        assert (tmp_path / "my cat's.sdc").read_bytes() == downloaded
        page.click("#copy")
        expect(page.locator("#copied")).not_to_be_empty()


def test_samples_are_there(browser: Browser, server: Server) -> None:
    """Too many pixels for this service: it says so, and the page scales down when told to."""
    with opened(browser, server.base, expected="422") as page:
        page.click("[data-sample=chelsea]")
        expect(page.locator("#problem-detail")).to_contain_text("135,300 pixels", timeout=WAIT_MS)
        page.click("#problem-action")
        settled(page)
        width, height = map(int, re.findall(r"chelsea-(\d+)x(\d+)\.sdc", page.get_attribute("#download", "download") or "")[0])
        assert MAX_PIXELS * 0.98 < width * height <= MAX_PIXELS
        expect(page.locator("#sent")).to_contain_text("scaled down")


def test_drop_and_paste(browser: Browser, server: Server, photograph: bytes) -> None:
    give = """([kind, bytes, name]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/jpeg'}));
        const event = kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})
            : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
        (kind === 'paste' ? document.body : document.getElementById('drop')).dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    with opened(browser, server.base) as page:
        assert page.evaluate(give, ["dragover", list(photograph), "a.jpg"])
        expect(page.locator("#drop")).to_have_class(re.compile("over"))
        again(page, lambda: page.evaluate(give, ["drop", list(photograph), "dropped.jpg"]))
        expect(page.locator("#drop")).not_to_have_class(re.compile("over"))
        expect(page.locator("#download")).to_contain_text("dropped.sdc")
        again(page, lambda: page.evaluate(give, ["paste", list(photograph), "pasted.jpg"]))
        expect(page.locator("#download")).to_contain_text("pasted.sdc")


def test_slide(browser: Browser, server: Server, photograph: bytes) -> None:
    with opened(browser, server.base) as page:
        expect(page.locator("#size")).to_be_disabled()
        first = again(page, lambda: choose(page, photograph))
        before = int(page.input_value("#bytes"))
        page.focus("#size")
        second = again(page, lambda: [page.keyboard.press("PageUp") for _ in range(3)])
        after = int(page.input_value("#bytes"))
        assert after > before * 1.5
        assert first["codecs"]["sdc"]["bytes"] <= before < second["codecs"]["sdc"]["bytes"] <= after
        box = box_of(page, "#size")
        again(page, lambda: page.mouse.click(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2))
        assert int(page.input_value("#bytes")) < before
        third = again(page, lambda: (page.fill("#bytes", "1500"), page.press("#bytes", "Tab")))
        assert third["codecs"]["sdc"]["bytes"] <= 1500


def test_the_divider_by_mouse_keyboard_and_touch(browser: Browser, server: Server, photograph: bytes, recorded: bytes) -> None:
    with opened(browser, server.base) as page:
        show(page, photograph, recorded)
        assert divider_at(page) == 50
        box = box_of(page, "#stage")
        middle = box["y"] + box["height"] / 2

        def at(share: float) -> float:
            return box["x"] + box["width"] * share

        page.mouse.move(at(0.5), middle)
        page.mouse.down()
        page.mouse.move(at(0.25), middle, steps=4)
        page.mouse.up()
        assert abs(divider_at(page) - 25) <= 1
        assert "25" in str(page.eval_on_selector(".layer.right", "layer => layer.style.clipPath"))
        page.mouse.move(at(0.9), middle)
        assert abs(divider_at(page) - 25) <= 1  # nobody holds it
        page.focus("#divider")
        start = divider_at(page)
        page.keyboard.press("ArrowRight")
        assert divider_at(page) == start + 2
        page.keyboard.press("Shift+ArrowLeft")
        assert divider_at(page) == start - 8
        for key, expected in (("End", 100), ("ArrowRight", 100), ("Home", 0), ("PageUp", 10)):
            page.keyboard.press(key)
            assert divider_at(page) == expected
        touch = Fingers(page)
        touch("Start", (at(0.1), middle))
        for share in (0.2, 0.4, 0.6, 0.7):
            touch("Move", (at(share), middle))
        touch("End")
        assert abs(divider_at(page) - 70) <= 1


def test_zoom_keeps_in_step(browser: Browser, server: Server, photograph: bytes, recorded: bytes) -> None:
    with opened(browser, server.base) as page:
        show(page, photograph, recorded)
        whole = scale(page)
        page.click("#zoom-in")
        assert scale(page) == pytest.approx(1.5 * whole)
        box = box_of(page, "#stage")
        x, y = box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5
        page.mouse.move(x, y)
        before = places(page)
        page.mouse.wheel(0, -100)
        page.evaluate("() => new Promise(requestAnimationFrame)")
        assert places(page) == before  # without Ctrl the wheel is the page's
        box = box_of(page, "#stage")
        x, y = box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5
        page.mouse.move(x, y)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -100)
        page.keyboard.up("Control")
        page.wait_for_function("before => document.querySelector('.sheet').style.transform !== before", arg=before[0])
        assert scale(page) > 1.5 * whole
        before = places(page)
        page.mouse.down()
        page.mouse.move(x - 60, y - 30, steps=3)
        page.mouse.up()
        assert places(page) != before
        assert divider_at(page) == 50
        enlarged = scale(page)
        touch = Fingers(page)
        touch("Start", (x, y), (x + 40, y))
        touch("Move", (x - 20, y), (x + 60, y))
        touch("End")
        assert scale(page) > 1.3 * enlarged
        page.focus("#stage")
        before = places(page)
        page.keyboard.press("ArrowRight")
        assert places(page) != before
        page.keyboard.press("0")
        assert scale(page) == pytest.approx(whole)
        page.keyboard.press("+")
        page.click("#zoom-fit")
        assert scale(page) == pytest.approx(whole)


def test_every_side_and_where_it_differs(browser: Browser, server: Server, photograph: bytes, recorded: bytes) -> None:
    with opened(browser, server.base) as page:
        reply = show(page, photograph, recorded)
        for name in ("JPEG", "WebP", "AVIF"):
            page.check(f"#left-side input[value={name}]")
            assert page.get_attribute(".layer.left img", "src") == reply["codecs"][name]["file"]
            assert page.eval_on_selector(".layer.left img", "image => image.decode().then(() => image.naturalWidth)") == reply["width"]
            expect(page.locator("#left-badge")).to_contain_text(f"{reply['codecs'][name]['bytes']:,} bytes")
        page.click("#map")
        expect(page.locator("#map")).to_have_attribute("aria-pressed", "true")
        page.wait_for_function("() => document.querySelector('.layer.right canvas').width === 30")  # 240 / 8
        alphas = page.eval_on_selector_all(
            ".map", "all => all.map(each => new Set(each.getContext('2d').getImageData(0, 0, each.width, each.height).data).size)"
        )
        assert all(count > 20 for count in alphas)
        expect(page.locator("#legend")).to_be_visible()
        whole = scale(page)
        page.click("#worst")
        page.wait_for_function("() => document.getElementById('stage').classList.contains('enlarged')")
        assert scale(page) == pytest.approx(4 * whole)
        page.click("#map")
        expect(page.locator(".layer.right canvas")).to_be_hidden()


def test_a_tiny_picture_gets_a_size_that_can_be_had(browser: Browser, server: Server) -> None:
    with opened(browser, server.base) as page:
        proposed = again(page, lambda: choose(page, jpeg(make_picture(16, 16))))
        before = int(page.input_value("#bytes"))
        assert proposed["codecs"]["sdc"]["bytes"] <= before
        page.focus("#size")
        again(page, lambda: page.keyboard.press("PageUp"))
        assert before < int(page.input_value("#bytes")) < 2 * before


def test_another_photo_of_the_same_size_is_seen_whole_and_as_it_is(
    browser: Browser, server: Server, photograph: bytes, recorded: bytes
) -> None:
    with opened(browser, server.base) as page:
        show(page, photograph, recorded)
        whole = scale(page)
        page.click("#map")
        expect(page.locator("#right-badge")).to_contain_text("Difference of .sdc")
        expect(page.locator("#left-badge")).to_contain_text("Original")
        page.click("#zoom-in")
        replay(page, recorded)
        again(page, lambda: (page.fill("#bytes", "840"), page.press("#bytes", "Tab")))
        assert scale(page) > whole  # the same photo in another size is looked at where the first was
        expect(page.locator("#map")).to_have_attribute("aria-pressed", "true")
        show(page, photograph, recorded)
        assert scale(page) == pytest.approx(whole)
        expect(page.locator("#map")).to_have_attribute("aria-pressed", "false")
        expect(page.locator(".layer.right canvas")).to_be_hidden()
        expect(page.locator("#right-badge")).not_to_contain_text("Difference")


def test_what_the_service_refuses(browser: Browser, server: Server, photograph: bytes) -> None:
    with opened(browser, server.base, expected="41[35]|422|503") as page:
        choose(page, b"not a picture at all")
        expect(page.locator("#problem")).to_contain_text("no picture of an accepted type", timeout=WAIT_MS)
        again(page, lambda: choose(page, photograph))
        with page.expect_response(lambda reply: "/compare" in reply.url and reply.status == 422):
            page.fill("#bytes", "34")
            page.press("#bytes", "Tab")
        expect(page.locator("#problem-action")).to_contain_text("Use")
        smallest = again(page, lambda: page.click("#problem-action"))
        assert smallest["codecs"]["sdc"]["bytes"] == int(page.input_value("#bytes"))
        page.fill("#bytes", "3")
        page.press("#bytes", "Tab")
        expect(page.locator("#problem")).to_contain_text("32 or more")
        full = {"type": "urn:sdc:problem:overloaded", "title": "Overloaded", "status": 503, "detail": "all places are taken"}

        def refuse(route: Route) -> None:
            route.fulfill(status=503, content_type="application/problem+json", headers={"Retry-After": "2"}, body=json.dumps(full))

        page.route("**/compare*", refuse, times=1)
        page.fill("#bytes", "1400")
        page.press("#bytes", "Tab")
        expect(page.locator("#problem")).to_contain_text("all places are taken")
        expect(page.locator("#problem-action")).to_be_disabled()
        expect(page.locator("#problem-action")).to_contain_text(re.compile(r"in \d s"))
        expect(page.locator("#problem-action")).to_be_enabled(timeout=WAIT_MS)
        again(page, lambda: page.click("#problem-action"))


def test_cancel(browser: Browser, server: Server, photograph: bytes) -> None:
    with opened(browser, server.base) as page:
        page.route("**/compare*", lambda route: None, times=1)  # never answered
        choose(page, photograph)
        expect(page.locator("#status")).to_contain_text("cat.jpg")
        with page.expect_event("requestfailed") as failed:
            page.click("#cancel")
        assert "/compare" in failed.value.url
        expect(page.locator("#busy")).to_be_hidden()
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator("#result")).to_be_hidden()
        again(page, lambda: choose(page, photograph))


def test_a_key_a_quota_and_a_service_that_is_gone(browser: Browser, small_model: Path, tmp_path: Path) -> None:
    secret = "a key of some length"
    keys = json.dumps({"shop": {"secret": secret, "scopes": ["compress"]}})
    photo = jpeg(make_picture(60, 80))
    limits = {"SDC_MODEL": str(small_model), "SDC_API_KEYS": keys, "SDC_COMPARE_PER_MINUTE": "1"}
    with serving(tmp_path, tmp_path / "log", **limits) as server, opened(browser, server.base, expected="401|422|429|ERR_") as page:
        page.fill("#bytes", "40000")
        page.route("**/compare*", lambda route: route.continue_(url=f"{server.base}/compare?max_bytes=40000"))  # of random weights
        choose(page, photo)
        expect(page.locator("#problem")).to_contain_text("no key was sent", timeout=WAIT_MS)
        page.fill("#key", secret)
        again(page, lambda: page.press("#key", "Enter"))
        expect(page.locator("#curl")).to_contain_text("$SDC_KEY")
        assert secret not in page.content()
        page.fill("#bytes", "39000")
        page.press("#bytes", "Tab")
        expect(page.locator("#problem")).to_contain_text("more than 1 requests a minute", timeout=WAIT_MS)
        expect(page.locator("#problem-action")).to_be_disabled()
        server.process.terminate()
        server.process.wait(60)
        choose(page, photo)
        expect(page.locator("#problem")).to_contain_text("did not answer", timeout=WAIT_MS)
        expect(page.locator("#problem-action")).to_be_enabled()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "360"])
def test_everybody_can_use_it(
    browser: Browser, server: Server, photograph: bytes, recorded: bytes, size: tuple[int, int], dark: bool
) -> None:
    with opened(browser, server.base, size, dark, expected="415") as page:

        def check() -> None:
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
            assert page.evaluate("document.documentElement.scrollWidth") == size[0]

        check()
        show(page, photograph, recorded)
        page.click("#map")
        page.evaluate("document.getElementById('key-form').hidden = false")
        check()
        choose(page, b"no picture")
        expect(page.locator("#problem")).to_be_visible(timeout=WAIT_MS)
        check()
        small = page.eval_on_selector_all(
            "button, .button, #divider", "all => all.filter(e => e.offsetParent && e.getBoundingClientRect().height < 36).map(e => e.id)"
        )
        assert not small
