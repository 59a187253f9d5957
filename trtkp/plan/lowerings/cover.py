"""Cover a set of kernel taps with rectangles. Each rectangle is an ordinary convolution with a smaller kernel.

>>> from trtkp.plan.lowerings.cover import cover
>>> cover((0, 1, 2, 4), columns=3)  # the top row of a 3x3 kernel and its centre, a T
(Rectangle(top=0, left=0, bottom=0, right=2), Rectangle(top=1, left=1, bottom=1, right=1))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["MAX_PARTS", "PART_COST", "Rectangle", "bounding_box", "cover"]

#: At most this many convolutions replace one. The search is exponential in this number.
MAX_PARTS = 4
#: What each further convolution costs, in taps of the kernel: it reads the input and adds to the output once more.
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
    """The cheapest set of rectangles that holds all taps.

    The cost is the sum of the areas, plus `PART_COST` for each rectangle after the first. Exact up to `MAX_PARTS`
    rectangles; ties go to fewer. The search is branch and bound over the rectangle that holds the first uncovered tap.
    That rectangle may be assumed to be the bounding box of the uncovered taps inside it, because shrinking it to that
    box loses none of them. Its top row is therefore the row of the first uncovered tap.

    Args:
        taps: tap numbers, row by row; at least one.
        columns: columns of the kernel.
    """
    # The bounding box is the first solution, and bounds the search from the start.
    box = bounding_box(taps, columns)
    best: tuple[float, int, tuple[Rectangle, ...]] = (float(box.area), 1, (box,))

    def extend(chosen: tuple[Rectangle, ...], left: frozenset[int], cost: float) -> None:
        nonlocal best
        if not left:
            best = min(best, (cost, len(chosen), chosen))
            return
        if chosen:
            cost += PART_COST
        # bound: the rectangles to come have at least the area of the uncovered taps
        if len(chosen) == MAX_PARTS or (cost + len(left), len(chosen) + 1) >= best[:2]:
            return
        # The last rectangle must hold everything that is left.
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
                        # A rectangle with an empty edge holds no more taps than its bounding box, which is tried too.
                        if bounding_box(held, columns) == rectangle:
                            extend((*chosen, rectangle), left - held, cost + rectangle.area)

    extend((), frozenset(taps), 0.0)
    return tuple(sorted(best[2]))
