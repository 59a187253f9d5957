"""What the source may not do: measure time with a clock that jumps, compare a token byte by byte."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import trtkp

#: Parts of the names of what is secret, or is compared with it.
_SECRETS = ("token", "authorization", "_expected")
_WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted((Path(trtkp.__file__).parent / "serving").rglob("*.py")):
        yield file, ast.parse(file.read_text())


def _wall_clocks(tree: ast.AST) -> list[int]:
    """Lines that read the time of day."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in _WALL_CLOCKS)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and {a.name for a in node.names} & {"time", "time_ns"}
        )
    ]


def _plain_comparisons(tree: ast.AST) -> list[int]:
    """Lines that compare a secret with ``==``, ``!=`` or ``in``; with None, or the empty text, they may."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare) or any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            continue
        names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        names |= {name.attr for name in ast.walk(node) if isinstance(name, ast.Attribute)}
        if any(secret in name.lower() for name in names for secret in _SECRETS):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "code", ["time.time()", "datetime.datetime.now()", "from time import time", "f = time.time_ns"]
)
def test_a_wall_clock_is_found(code: str) -> None:
    assert _wall_clocks(ast.parse(code)) == [1]


@pytest.mark.parametrize("code", ["self.authorization == b''", "token != given", "header in (token,)"])
def test_a_plain_comparison_is_found(code: str) -> None:
    assert _plain_comparisons(ast.parse(code)) == [1]


def test_nothing_is_measured_with_a_clock_that_jumps() -> None:
    assert not [f"{file}:{line}" for file, tree in _sources() for line in _wall_clocks(tree)]


def test_tokens_are_compared_in_constant_time() -> None:
    found = [f"{file.name}:{line}" for file, tree in _sources() for line in _plain_comparisons(tree)]
    assert not found
    calls = [file.name for file, tree in _sources() if "hmac.compare_digest" in ast.unparse(tree)]
    assert calls == ["head.py", "rest.py"]
