"""How quick the service says that nothing changed, and hands out a picture it has, against a bare Starlette route with the same bytes.

k6 asks both in turn, on loopback and on the same processors: what it takes, both lack.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from service.bench.load import k6, photographs
from service.bench.pictures import machine
from service.bench.serving import serving
from service.errors import BadParameter
from service.settings import Settings

SCRIPT = Path(__file__).with_name("origin.js")
CLIENTS = 16
ROUNDS = 3
SIDE = 512


def rate(url: str, tag: str, expected: int, seconds: float, folder: Path) -> float:
    """Replies a second; raises BadParameter where one was not the expected status."""
    out = folder / "origin.json"
    given: dict[str, object] = {"URL": url, "TAG": tag, "EXPECTED": expected, "CLIENTS": CLIENTS, "SECONDS": round(seconds), "OUT": out}
    with k6(SCRIPT, given) as process:
        try:
            if process.wait(seconds + 120):
                raise BadParameter(f"k6 failed with {process.returncode}")
        finally:
            process.kill()
    found = json.loads(out.read_text())
    if found["unexpected"]:
        raise BadParameter(f"{found['unexpected']} replies of {url} were not {expected}")
    return float(found["rate"])


def main(settings: Settings, seconds: float, out: Console) -> None:
    """Run and print; ``seconds`` of each of the two servers, three times."""
    ((source, size),) = photographs([(SIDE, SIDE)])
    terms = f"a {SIDE}x{SIDE} photograph as WebP, {CLIENTS} clients on kept connections, no access log on either side"
    out.print(f"{machine()}; {terms}", highlight=False)
    table = Table("replies/s, best of three", "sdc", "bare Starlette route", "ratio", title="an origin behind a CDN")
    with (
        tempfile.TemporaryDirectory() as name,
        serving(Path(name), Path(name) / "log", SDC_MODEL=str(settings.model), SDC_LOG_LEVEL="error") as server,
    ):
        with httpx.Client(base_url=server.base, timeout=120) as client:
            path = client.post("/compress", params={"max_bytes": size}, content=source).raise_for_status().json()["links"]["webp"]
            shown = client.get(path).raise_for_status()
            while client.get(path).headers["cache-status"] != "sdc; hit":
                pass
            (Path(name) / "picture").write_bytes(shown.content)
        kept = {
            key: value for key, value in shown.headers.items() if key not in ("date", "content-length", "x-request-id", "server-timing")
        }
        bare_settings = {"BARE_BODY": f"{name}/picture", "BARE_HEADERS": json.dumps(kept)}
        with serving(Path(name), Path(name) / "bare.log", "service.bench.bare", **bare_settings) as bare:
            for label, tag, expected in (("304", shown.headers["etag"], 304), (f"kept render, {len(shown.content):,} B", "", 200)):
                best = {"sdc": 0.0, "bare": 0.0}
                for _ in range(ROUNDS):
                    for side, each in (("bare", bare), ("sdc", server)):
                        best[side] = max(best[side], rate(each.base + path, tag, expected, seconds, Path(name)))
                table.add_row(label, f"{best['sdc']:.0f}", f"{best['bare']:.0f}", f"{best['sdc'] / best['bare']:.2f}")
    out.print(table)
