"""Links and names in files that the site's build does not check: those at the root, and mentions in comments."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The changelog names what no longer exists, and two files of tests name what never did.
_EXEMPT = {ROOT / "CHANGELOG.md", ROOT / "tests/test_public_api.py", Path(__file__)}
_PAGES = sorted(ROOT.glob("*.md"))
_FOLDERS = (
    ".ci",
    ".github",
    "benchmarks",
    "calib",
    "docs",
    "examples",
    "plugins",
    "prune",
    "scripts",
    "tests",
    "trtkp",
)
_TEXTS = {
    ".cff",
    ".cpp",
    ".cu",
    ".cuh",
    ".c",
    ".h",
    ".ipynb",
    ".md",
    ".py",
    ".sh",
    ".svg",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}
#: Texts that look like modules: formats of documents, metadata of nodes, files and an address.
_NO_MODULES = re.compile(r"trtkp\.(__\w+__|advice|comparison|pruned|index_sets|weight|onnx|h|map|git|example)\b")
_MODULE = re.compile(r"(?<![\w./\"'-])trtkp(?:\.[A-Za-z_]\w*)+")
_DOCUMENT = re.compile(r"(?<![\w/])docs/[\w./-]+\.(?:md|svg)")


def texts() -> Iterator[tuple[Path, str]]:
    """Every source and document of the project."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in _FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if "results" not in path.parts]
    for path in sorted(set(files) - _EXEMPT):
        if path.suffix in _TEXTS or path.name == "Makefile":
            yield path, path.read_text(encoding="utf-8")


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module has; of a class, its members are not looked at."""
    path, rest = ROOT, name.split(".")
    while rest and (path / rest[0]).is_dir():
        path, *rest = path / rest[0], *rest[1:]
    if rest and (path / f"{rest[0]}.py").is_file():
        path, *rest = path / f"{rest[0]}.py", *rest[1:]
    else:
        path /= "__init__.py"
    return not rest or rest[0] in names_of(path)


@cache
def names_of(path: Path) -> set[str]:
    """What a module defines or imports at any depth, without running it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_at_the_root_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_links_are_found() -> None:
    assert len(re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8"))) > 20


def test_every_document_that_is_mentioned_exists() -> None:
    found = {(path, name) for path, text in texts() for name in _DOCUMENT.findall(text)}
    assert len(found) > 20
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in sorted(found) if not (ROOT / name).is_file()] == []


def test_every_module_that_is_mentioned_exists() -> None:
    mentions: dict[str, Path] = {}
    for path, text in texts():
        for name in _MODULE.findall(text):
            if not _NO_MODULES.match(name):
                mentions.setdefault(name, path)
    assert len(mentions) > 200
    assert [f"{path.relative_to(ROOT)}: {name}" for name, path in sorted(mentions.items()) if not exists(name)] == []


@pytest.mark.parametrize("name", ["trtkp.runtime", "trtkp.plan.planner.nothing", "trtkp.nothing.at.all"])
def test_a_module_that_does_not_exist_is_noticed(name: str) -> None:
    assert not exists(name)
    assert exists("trtkp.plan.planner")
    assert exists("trtkp.graph.save.save_graph")
