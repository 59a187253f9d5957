"""Cover a set of kernel taps with rectangles, each of which is an ordinary convolution."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["MAX_PARTS", "PART_COST", "Rectangle", "bounding_box", "cover"]

#: At most this many convolutions replace one.
MAX_PARTS = 4
#: What one more convolution costs, in taps: it reads the input and adds to the output once more.
PART_COST = 1.0


@dataclass(frozen=True, order=True)
class Rectangle:
    """Kernel rows ``top..bottom`` and columns ``left..right``, both inclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top + 1, self.right - self.left + 1

    @property
    def area(self) -> int:
        """Number of taps."""
        return self.shape[0] * self.shape[1]

    def taps(self, columns: int) -> list[int]:
        """The taps inside, of a kernel with that many columns, row by row."""
        return [r * columns + s for r in range(self.top, self.bottom + 1) for s in range(self.left, self.right + 1)]


def bounding_box(taps: Iterable[int], columns: int) -> Rectangle:
    """The smallest rectangle that holds all taps (at least one)."""
    rows, cols = zip(*(divmod(tap, columns) for tap in taps), strict=True)
    return Rectangle(min(rows), min(cols), max(rows), max(cols))


@lru_cache(maxsize=4096)
def cover(taps: tuple[int, ...], columns: int) -> tuple[Rectangle, ...]:
    """Rectangles that hold all taps at least cost, the sum of areas plus `PART_COST` for each after the first.

    Exact up to `MAX_PARTS` rectangles whose corners lie on the taps' rows and columns; ties go to fewer parts.
    """
    box = bounding_box(taps, columns)
    rows = sorted({tap // columns for tap in taps})
    cols = sorted({tap % columns for tap in taps})
    candidates = [
        Rectangle(top, left, bottom, right)
        for i, top in enumerate(rows)
        for bottom in rows[i:]
        for j, left in enumerate(cols)
        for right in cols[j:]
    ]
    candidates.sort(key=lambda rectangle: rectangle.area)
    held = {rectangle: frozenset(rectangle.taps(columns)) for rectangle in candidates}
    best: tuple[float, tuple[Rectangle, ...]] = (float(box.area), (box,))

    def extend(chosen: tuple[Rectangle, ...], left: frozenset[int], cost: float) -> None:
        nonlocal best
        if not left:
            if cost < best[0]:
                best = cost, chosen
            return
        # every further part costs at least its own overhead and the taps still to be held
        if (
            len(chosen) == MAX_PARTS
            or cost + (PART_COST if chosen else 0) + len(left) / (MAX_PARTS - len(chosen)) >= best[0]
        ):
            return
        first = min(left)
        for rectangle in candidates:
            if first in held[rectangle]:
                step = rectangle.area + (PART_COST if chosen else 0)
                if cost + step < best[0]:
                    extend((*chosen, rectangle), left - held[rectangle], cost + step)

    extend((), frozenset(taps), 0.0)
    return tuple(sorted(best[1]))
