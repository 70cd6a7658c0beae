"""What the documents hold that can be run, and who runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PLACES = ("*.md", "docs/**/*.md", "deploy/**/*.md", "service/models/**/*.md")
LANGUAGES = {"sh", "bash", "shell", "console", "python", "py", "js", "javascript"}
NOT_RUN = re.compile(r"<!-- not run: (\S.*?) -->\s*", re.DOTALL)

RUN_BY = {
    (
        "README.md",
        "# With `make serve` running in another terminal, and a photo cat.jpg here:",
    ): "tests/system/test_curl.py::test_the_readme",
    ("README.md", "import httpx"): "tests/api/test_documentation.py::test_the_readme_in_python",
    ("README.md", "import { readFile } from 'node:fs/promises';"): "tests/system/test_curl.py::test_the_readme_in_javascript",
    ("README.md", ". .venv/bin/activate"): "tests/docs/test_commands.py::test_without_a_server",
    ("CONTRIBUTING.md", "make docs    # the table in docs/OPERATIONS.md"): "tests/docs/test_commands.py::test_make_docs",
    ("docs/API.md", "SDC_API_KEYS="): "tests/docs/test_commands.py::test_the_keys_of_the_page_are_keys",
    ("docs/API.md", "import base64, hashlib, hmac"): "tests/api/test_documentation.py::test_the_snippet_signs_as_the_page_says",
    ("docs/API.md", "import { createHmac } from 'node:crypto';"): "tests/system/test_curl.py::test_javascript_signs_as_the_page_says",
    ("docs/API.md", "const { preview, color"): "tests/system/test_curl.py::test_javascript_paints_before_the_picture_is_there",
    ("docs/BENCH.md", "import json"): "tests/docs/test_commands.py::test_anybody_can_plot_the_figures_again",
    ("docs/KEEPING.md", "mkdir -p backup"): "tests/docs/test_commands.py::test_backup_and_restore",
    ("docs/KEEPING.md", "mkdir -p restored"): "tests/docs/test_commands.py::test_backup_and_restore",
    ("docs/KEEPING.md", "mkdir -p ~/.local"): "tests/docs/test_commands.py::test_an_old_model_is_kept_and_named",
}
"""(document, how the block begins): the test that runs it"""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    document: str
    """from the root of the repository"""
    line: int
    """the fence's, from 1"""
    language: str
    text: str
    not_run: str | None
    """why nobody runs it, where the line above says so"""


def documents() -> list[Path]:
    return sorted({path for place in PLACES for path in ROOT.glob(place)})


def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text())


def blocks_of(path: Path, root: Path = ROOT) -> Iterator[Block]:
    """The fenced blocks of a document that are in a language one can run."""
    before: Token | None = None
    for token in tokens(path):
        if token.type == "fence" and token.info.strip().partition(" ")[0].lower() in LANGUAGES:
            above = NOT_RUN.fullmatch(before.content) if before is not None and before.type == "html_block" else None
            assert token.map is not None
            language = token.info.strip().partition(" ")[0].lower()
            yield Block(str(path.relative_to(root)), token.map[0] + 1, language, token.content, above.group(1) if above else None)
        before = token


def all_blocks() -> list[Block]:
    return [block for path in documents() for block in blocks_of(path)]


def runner_of(block: Block) -> str | None:
    """The test that is said to run a block."""
    found = [test for (document, beginning), test in RUN_BY.items() if document == block.document and block.text.startswith(beginning)]
    assert len(found) <= 1, f"two entries of RUN_BY fit {block.document}:{block.line}"
    return found[0] if found else None


def block(document: str, beginning: str) -> str:
    """The text of the one block of a document that begins so: what a test runs."""
    found = [each.text for each in blocks_of(ROOT / document) if each.text.startswith(beginning)]
    assert len(found) == 1, f"{document} has {len(found)} blocks that begin with {beginning!r}"
    return found[0]
