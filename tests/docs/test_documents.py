"""The documents say what is so: blocks are run, links lead somewhere, and what is named exists."""

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from markdown_it.token import Token
from typer.main import get_command

from service import __version__
from service.cli import app
from service.settings import Settings
from tests.docs.blocks import ROOT, RUN_BY, Block, all_blocks, blocks_of, documents, runner_of, tokens
from training.__main__ import app as training_app

NO_COMMANDS = {"sdc model NAME VERSION", "sdc code 1 DOWNSCALE CHANNELS"}
"""what looks like one: of docs/FORMAT.md, what the two identities are digests of"""
NAMES = [str(path.relative_to(ROOT)) for path in documents()]
HELP = """
nobody runs this block of {block.document}, line {block.line}:

{block.text}
Either let a test run it, with its text from `tests.docs.blocks.block(...)`, and enter that test in RUN_BY of tests/docs/blocks.py;
or say on the line above the fence why not:  <!-- not run: reason -->"""


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: f"{block.document}:{block.line}")
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    runner = runner_of(block)
    assert runner or block.not_run, HELP.format(block=block)
    assert not (runner and block.not_run), f"{block.document}:{block.line} says that it is not run, and {runner} runs it"


@pytest.mark.parametrize(("document", "beginning"), RUN_BY)
def test_whoever_is_said_to_run_a_block_exists(document: str, beginning: str) -> None:
    here = [block for block in blocks_of(ROOT / document) if block.text.startswith(beginning)]
    assert len(here) == 1, f"{document} has {len(here)} blocks that begin with {beginning!r}: mend RUN_BY in tests/docs/blocks.py"
    path, _, name = RUN_BY[document, beginning].partition("::")
    source = (ROOT / path).read_text()
    functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert name in functions, f"{path} has no {name}"
    assert Path(document).name in source, f"{path} does not read {document}: it must take the block from there"


def test_a_block_without_a_word_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nrm -rf /\n```\n\n<!-- not run: it hurts -->\n```sh\nrm -rf ~\n```\n\n<!-- a remark -->\n```python\n1\n```\n\n"
        "- in a list:\n\n  ```bash\n  ls\n  ```\n\n<!-- not run: too far away -->\n\ntext\n\n```js\n2\n```\n\n```json\n{}\n```\n"
    )
    assert [(block.language, block.not_run) for block in blocks_of(page, tmp_path)] == [
        ("sh", None),
        ("sh", "it hurts"),
        ("python", None),
        ("bash", None),
        ("js", None),
    ]


# -- what is named


def inline(document: str) -> Iterator[Token]:
    for token in tokens(ROOT / document):
        yield from token.children or ()


def code(document: str) -> list[str]:
    """Every line of code of a document, in a sentence or in a block."""
    said = [token.content for token in inline(document) if token.type == "code_inline"]
    for block in blocks_of(ROOT / document):
        said += block.text.splitlines() if block.language in ("sh", "bash", "shell", "console") else []
    return said


def commands(lines: list[str], program: str) -> Iterator[list[str]]:
    """The arguments of every call of a program, in the simple shell that documents have."""
    for line in lines:
        for part in re.split(r"&&|\|\||[|;]|\$\(|\)", re.sub(r"(^|\s)#.*", "", line.removeprefix("$ "))):
            words = part.strip()
            if words.startswith(f"{program} ") and words not in NO_COMMANDS:
                try:
                    yield shlex.split(words.removeprefix(program))
                except ValueError:  # half a quotation, cut off by the split
                    continue


def complaint(command: click.Command, words: list[str]) -> str | None:
    """What is wrong with the names in a command line: of commands and options, not their values."""
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            return None
        known = command.commands
        if words[0] not in known:
            return f"there is no command {words[0]!r}"
        command, words = known[words[0]], words[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    wrong = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in options]
    return f"{command.name} has no option {wrong[0]}" if wrong else None


@pytest.mark.parametrize("document", NAMES)
def test_commands_and_options_exist(document: str) -> None:
    lines = code(document)
    for program, each in (("sdc", app), ("python -m training", training_app)):
        command = get_command(each)
        for words in commands(lines, program):
            assert complaint(command, words) is None, f"{document}: {program} {' '.join(words)}: {complaint(command, words)}"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("sdc compress *.jpg -o out/ --max-bytes 5000", None),
        ("sdc bench rd --images kodak", None),
        ("sdc bench", None),
        ("sdc compres x", "no command 'compres'"),
        ("sdc models get", "no command 'get'"),
        ("FOO=1 && sdc render --color x # sdc nothing", "no option --color"),
        ("$ sdc inspect --help | less", None),
    ],
)
def test_a_wrong_command_is_seen(line: str, wrong: str | None) -> None:
    (words,) = commands([line], "sdc")
    said = complaint(get_command(app), words)
    assert said is None if wrong is None else wrong in (said or "")


@pytest.mark.parametrize("document", NAMES)
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[0] for words in commands(code(document), "make") if words and re.fullmatch(r"[a-z-]+", words[0])}
    assert named <= targets, f"{document} names targets that the Makefile has not"


@pytest.mark.parametrize("document", NAMES)
def test_settings_exist(document: str) -> None:
    known = {f"SDC_{name}".upper() for name in Settings.model_fields}
    for name in set(re.findall(r"\bSDC_[A-Z0-9_]+", (ROOT / document).read_text())):
        assert name in known or (name.endswith("_") and any(each.startswith(name) for each in known)), f"{document}: there is no {name}"


@pytest.mark.parametrize("document", NAMES)
def test_files_named_exist(document: str) -> None:
    for name in code(document):
        if re.fullmatch(
            r"(service|tests|training|docs|deploy|api|batching|codec|engine|imaging|storage|telemetry)/[\w/-]*\.(py|md|toml|js|txt)", name
        ):
            assert (ROOT / name).exists() or (ROOT / "service" / name).exists(), f"{document}: there is no {name}"


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    stream = tokens(path)
    headings = [after.content for token, after in itertools.pairwise(stream) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", NAMES)
def test_links_lead_somewhere(document: str) -> None:
    for token in inline(document):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not target or "://" in target or target.startswith("data:"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), f"{document}: {target} leads nowhere"
        assert not anchor or anchor in anchors(path), f"{document}: {target}: there is no such heading"


def test_the_changelog_knows_the_version() -> None:
    versions = re.findall(r"^## \[([\d.]+|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(each for each in versions if each != "Unreleased") == __version__
    assert len(set(versions)) == len(versions)


def test_the_architecture_page_names_every_part() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for path in (ROOT / "service").iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert path.name in page, f"docs/ARCHITECTURE.md does not say what service/{path.name} is for"
