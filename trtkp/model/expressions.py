"""The grammar that symbolic sizes in exported programs must follow.

PyTorch reads these strings with ``sympy.sympify``, which calls ``eval``. So nothing but a bounded tree of known SymPy
constructors over integers and symbols may reach it.
"""

from __future__ import annotations

import ast
import re

__all__ = ["check_expression", "is_size", "is_symbol"]

_SYMBOL = re.compile(r"[a-z]{1,4}[0-9]{1,4}")
_LINEAR = re.compile(r"([0-9]{1,9}\*)?s[0-9]{1,4}( [+-] [0-9]{1,9})?")
_MAX_LENGTH = 4096
_MAX_INTEGER = 1 << 62
# Largest exponent of Pow and PowByNatural. Larger ones could keep SymPy busy for ever.
_MAX_EXPONENT = 16
_FUNCTIONS = frozenset(
    [
        "Add", "Mul", "Pow", "Integer", "Float", "Rational", "Symbol", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt",
        "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "And",
        "Or", "Not", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt",
        "FloorToInt", "CeilDiv", "PowByNatural", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt",
        "RoundToInt", "ToFloat", "Identity",
    ]
)  # fmt: skip
_ASSUMPTIONS = frozenset({"integer", "positive", "nonnegative", "negative", "zero", "nonzero", "real", "finite"})
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def is_symbol(name: object) -> bool:
    """Whether a value is a size symbol as PyTorch names them, such as ``s0``, ``s77`` or ``u3``."""
    return isinstance(name, str) and _SYMBOL.fullmatch(name) is not None


def is_size(text: object) -> bool:
    """Whether a value is a size symbol or linear in one, such as ``8*s24`` or ``2*s0 + 1``.

    Example:
        >>> is_size("2*s0 + 1"), is_size("__import__('os')")
        (True, False)
    """
    return is_symbol(text) or (isinstance(text, str) and _LINEAR.fullmatch(text) is not None)


def check_expression(text: object) -> None:
    """Raise ``ValueError`` unless ``text`` is an arithmetic expression over integers and size symbols."""
    if not isinstance(text, str) or not text.isascii() or len(text) > _MAX_LENGTH:
        raise ValueError("not a short ASCII string")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        _check(tree.body, 0)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("not an expression") from None


def _check(node: ast.expr, depth: int) -> None:
    if depth > 40:
        raise ValueError("nested too deep")
    match node:
        case ast.Constant(value=bool()):
            return
        case ast.Constant(value=int(value)) if abs(value) < _MAX_INTEGER:
            return
        case ast.Constant(value=float()):
            return
        case ast.Name(id=name) if is_symbol(name) or name in ("true", "false", "oo", "int_oo"):
            return
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check(operand, depth + 1)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            _check(left, depth + 1)
            _check(right, depth + 1)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            if not 0 <= power <= _MAX_EXPONENT or not _is_leaf(left):
                raise ValueError("not a symbol or integer to the power of a small integer")
            _check(left, depth + 1)
        case ast.Compare(left=left, ops=ops, comparators=right) if all(isinstance(op, _COMPARISONS) for op in ops):
            for operand in (left, *right):
                _check(operand, depth + 1)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _FUNCTIONS:
            _check_call(name, args, keywords, depth)
        case _:
            raise ValueError(f"{type(node).__name__} is not allowed")


def _check_call(name: str, args: list[ast.expr], keywords: list[ast.keyword], depth: int) -> None:
    if name == "Symbol":
        first = args[0] if len(args) == 1 else None
        if not (isinstance(first, ast.Constant) and is_symbol(first.value)):
            raise ValueError("not a size symbol")
        for keyword in keywords:
            if keyword.arg not in _ASSUMPTIONS or not isinstance(keyword.value, ast.Constant):
                raise ValueError(f"symbol assumption {keyword.arg} is not allowed")
            if not isinstance(keyword.value.value, bool):
                raise ValueError("a symbol assumption must be True or False")
        return
    if keywords:
        raise ValueError(f"keyword arguments of {name} are not allowed")
    if name == "Float":
        # srepr writes Float('2.5', precision=53); PyTorch's sizes hold no such strings.
        if not all(isinstance(arg, ast.Constant) and isinstance(arg.value, int | float) for arg in args):
            raise ValueError("not a number")
        return
    if name in ("Pow", "PowByNatural"):
        power = _integer(args[1]) if len(args) == 2 else None
        if power is None or abs(power) > _MAX_EXPONENT or not _is_leaf(args[0]):
            raise ValueError("not a symbol or integer to the power of a small integer")
    for arg in args:
        _check(arg, depth + 1)


def _is_leaf(node: ast.expr) -> bool:
    # Powers of powers are refused, because SymPy evaluates them.
    return (
        isinstance(node, ast.Name)
        or _integer(node) is not None
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol")
    )


def _integer(node: ast.expr) -> int | None:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value
        case ast.Call(func=ast.Name(id="Integer"), args=[arg]):
            return _integer(arg)
    return None
