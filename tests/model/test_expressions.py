"""The grammar of size expressions."""

from __future__ import annotations

import pytest
import sympy  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from trtkp.model.expressions import check_expression, is_symbol

SYMBOL = sympy.Symbol("s77", integer=True, positive=True)


@pytest.mark.parametrize(
    "expression",
    [SYMBOL, 2 * SYMBOL + 1, SYMBOL**2, sympy.Max(SYMBOL, 3), sympy.Ne(SYMBOL, 4), sympy.Rational(1, 2) * SYMBOL],
)
def test_what_pytorch_writes(expression: sympy.Expr) -> None:
    check_expression(sympy.srepr(expression))
    check_expression(str(expression))


@pytest.mark.parametrize("text", ["FloorDiv(s0 - 1, 2) + 1", "s0 // 2", "Integer(4)", "-s0", "PowByNatural(s0, 2)"])
def test_functions(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "s0.__class__",
        "(lambda: 1)()",
        "[1 for s0 in (1,)]",
        "9**9**9",
        "Pow(Pow(Integer(9), 16), 16)",
        "Pow(s0, 999999)",
        "Symbol('x.y')",
        "Symbol('s0', positive=print())",
        "Symbol('s0', commutative=True)",
        "Function('f')",
        "exec",
        "'s0'",
        "s0; s1",
        "Integer('4')",
        "Max(s0, key=print)",
        "1e5 if s0 else s1",
        "9" * 100,
        "(" * 500 + "s0" + ")" * 500,
        "s0" + "+s0" * 3000,
        "ß",
        "",
        None,
        3,
    ],
)
def test_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_expression(text)


@given(st.text(max_size=40))
def test_only_value_errors(text: str) -> None:
    try:
        check_expression(text)
    except ValueError:
        return
    assert "__" not in text


def test_symbols() -> None:
    assert is_symbol("s77")
    assert is_symbol("u0")
    assert not any(map(is_symbol, ["s", "77", "s77 ", "S0", "u123456789", None, 4]))
