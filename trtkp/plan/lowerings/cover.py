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

    Exact up to `MAX_PARTS` rectangles; ties go to fewer parts. Branch and bound over the rectangle that holds the first
    tap left. It may be taken as the bounding box of taps that are left, since a smaller one holds no fewer; so its top
    is that tap's row.
    """
    box = bounding_box(taps, columns)
    best: tuple[float, int, tuple[Rectangle, ...]] = (float(box.area), 1, (box,))

    def extend(chosen: tuple[Rectangle, ...], left: frozenset[int], cost: float) -> None:
        nonlocal best
        if not left:
            best = min(best, (cost, len(chosen), chosen))
            return
        if chosen:
            cost += PART_COST
        # the parts to come hold what is left
        if len(chosen) == MAX_PARTS or (cost + len(left), len(chosen) + 1) >= best[:2]:
            return
        if len(chosen) == MAX_PARTS - 1:
            last = bounding_box(left, columns)
            extend((*chosen, last), frozenset(), cost + last.area)
            return
        top, column = divmod(min(left), columns)
        for bottom in sorted({tap // columns for tap in left}):
            band = sorted({tap % columns for tap in left if tap // columns <= bottom})
            for start in band:
                for end in band:
                    if start <= column <= end:
                        rectangle = Rectangle(top, start, bottom, end)
                        held = left.intersection(rectangle.taps(columns))
                        if bounding_box(held, columns) == rectangle:
                            extend((*chosen, rectangle), left - held, cost + rectangle.area)

    extend((), frozenset(taps), 0.0)
    return tuple(sorted(best[2]))
