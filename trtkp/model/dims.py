"""Readable names for the symbolic sizes of an exported program: ``batch`` instead of ``s77``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trtkp.shapes import Dim

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["SymbolNames", "axis_name", "rename_symbols"]

_IMAGE_AXES = {2: "height", 3: "width"}


def axis_name(axis: int, rank: int, taken: Iterable[str], input_name: str) -> str:
    """A free name for a dynamic axis: ``batch``, ``height`` or ``width`` if it fits, else input name and axis number.

    Example:
        >>> axis_name(0, 4, [], "image"), axis_name(3, 4, [], "image"), axis_name(1, 2, [], "mask")
        ('batch', 'width', 'mask_dim1')
    """
    name = "batch" if axis == 0 else _IMAGE_AXES.get(axis, "") if rank == 4 else ""
    if not name or name in taken:
        name = f"{input_name}_dim{axis}"
    return name


def rename_symbols(text: str, names: Mapping[str, str]) -> str:
    """A size expression with its symbols renamed.

    Example:
        >>> rename_symbols("2*s77", {"s77": "batch"})
        '2*batch'
    """
    return re.sub(r"\b[A-Za-z_][A-Za-z0-9_]*\b", lambda match: names.get(match.group(), match.group()), text)


class SymbolNames:
    """Readable names and ranges of a program's size symbols. The input in which a symbol first appears names it."""

    def __init__(self, program: ExportedProgram) -> None:
        self.names: dict[str, str] = {}
        self._ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}

    def learn(self, input_name: str, shape: Iterable[Any]) -> None:
        """Name the symbols that stand alone as a dimension of an input."""
        sizes = list(shape)
        for axis, size in enumerate(sizes):
            text = str(size)
            if not isinstance(size, int) and text.isidentifier() and text not in self.names:
                self.names[text] = axis_name(axis, len(sizes), self.names.values(), input_name)

    def dimension(self, size: Any) -> int | Dim:
        """A size as a number, or as a ``Dim`` with the range that the export promised."""
        if isinstance(size, int):
            return size
        text = str(size)
        limits = self._ranges.get(text)
        low, high = (_finite(limits.lower), _finite(limits.upper)) if limits is not None else (None, None)
        return Dim(rename_symbols(text, self.names), max(1, low or 1), high)


def _finite(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None
    # In some versions of PyTorch "no limit" is the largest 64-bit integer.
    return number if abs(number) < 1 << 62 else None
