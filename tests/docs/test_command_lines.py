"""The command lines of the documents are ones that trtkp takes: its commands, options and arguments."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.exceptions import TyperException

from trtkp.cli.app import COMMANDS, load_command
from trtkp.cli.parameters import parameters_of
from trtkp.errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.ipynb")),
]
_FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^[$!%]? ?(trtkp [a-z].*)$", re.MULTILINE)
_INLINE = re.compile(r"`(trtkp [a-z][^`]*)`")


def text_of(page: Path) -> str:
    """A page as Markdown; the code of a notebook is fenced."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n".join(f"```\n{source}\n```" if kind == "code" else source for kind, source in cells)


def command_lines(page: Path) -> tuple[set[str], set[str]]:
    """The lines of a page to be typed, and what its prose says of commands."""
    text = text_of(page)
    blocks = "\n".join(_FENCED.findall(text)).replace("\\\n", " ")
    return set(_LINE.findall(blocks)), {" ".join(line.split()) for line in _INLINE.findall(_FENCED.sub("", text))}


def parse(line: str) -> None:
    """Raises `TyperException` or `InputError` for a line that trtkp would refuse, without running it."""
    _, name, *arguments = shlex.split(line, comments=True)
    command: Any = load_command(name)
    given = command.make_context(name, arguments).params
    for key, parameter in parameters_of(command.callback).items():
        parameter.value(given[key])


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)[0]], ids=lambda page: page.name)
def test_command_lines_parse(page: Path) -> None:
    refused = []
    for line in sorted(command_lines(page)[0]):
        try:
            parse(line)
        except typer.Exit:  # --help, which ends the program
            continue
        except (TyperException, InputError) as error:
            refused.append(f"{line}: {error}")
    assert refused == []


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)[1]], ids=lambda page: page.name)
def test_options_named_in_prose_exist(page: Path) -> None:
    unknown = []
    for line in sorted(command_lines(page)[1]):
        name, *words = line.split()[1:]
        if name not in COMMANDS:
            unknown.append(line)
            continue
        options = {flag for param in load_command(name).params for flag in (*param.opts, *param.secondary_opts)}
        options |= {"--help", "--debug"}
        unknown += [f"{line}: {word}" for word in words if word.startswith("-") and word.split("=")[0] not in options]
    assert unknown == []


@pytest.mark.parametrize(
    "line",
    ["trtkp build net.onnx -o x --nosuch 3", "trtkp nosuch", "trtkp prune", "trtkp build net.onnx -o x --ratio a"],
)
def test_a_wrong_line_is_noticed(line: str) -> None:
    with pytest.raises((TyperException, InputError, AttributeError, ModuleNotFoundError)):
        parse(line)


def test_the_pages_have_lines() -> None:
    assert sum(len(command_lines(page)[0]) for page in PAGES) > 40
