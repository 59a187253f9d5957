"""Draw a scatter plot as SVG with the standard library alone, for machines that have no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "scatter"]

_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 760, 440, 60, 200
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Range of an axis, its ticks, and the format of their labels."""

    low: float
    high: float
    ticks: Sequence[float]
    form: str = "g"

    def place(self, value: float, length: float) -> float:
        """Position of a value on an axis of ``length`` pixels."""
        return (value - self.low) / (self.high - self.low) * length


def scatter(title: str, series: Mapping[str, Points], x: Axis, y: Axis, guide: Points = ()) -> str:
    """The plot as SVG text.

    Args:
        title: title of the plot. If points lie beyond the axes, it also says how many; these are not drawn.
        series: name to points; each series has its own colour.
        x: the horizontal axis.
        y: the vertical axis.
        guide: points of a dashed line; empty for none.
    """
    inside = {
        name: [point for point in points if x.low <= point[0] <= x.high and y.low <= point[1] <= y.high]
        for name, points in series.items()
    }
    outside = sum(map(len, series.values())) - sum(map(len, inside.values()))
    title += f" ({outside} lie outside)" if outside else ""

    def at(point: tuple[float, float]) -> tuple[float, float]:
        left = _MARGIN + x.place(point[0], _WIDTH - _LEGEND - 2 * _MARGIN)
        return left, _HEIGHT - _MARGIN - y.place(point[1], _HEIGHT - 2 * _MARGIN)

    def line(points: Points, style: str) -> str:
        places = " ".join(f"{left:.1f},{top:.1f}" for left, top in map(at, points))
        return f'<polyline points="{places}" {style} fill="none"/>'

    def text(left: float, top: float, words: str) -> str:
        return f'<text x="{left:.1f}" y="{top:.1f}">{escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_MARGIN}" y="24" font-size="14">{escape(title)}</text><g font-size="11">',
    ]
    for tick in y.ticks:
        left, top = at((x.low, tick))
        parts += [line([(x.low, tick), (x.high, tick)], 'stroke="#ddd"'), text(left - 44, top + 4, f"{tick:{y.form}}")]
    for tick in x.ticks:
        left, top = at((tick, y.low))
        parts.append(text(left - 8, top + 18, f"{tick:{x.form}}"))
    if guide:
        parts.append(line(guide, 'stroke="#888" stroke-dasharray="4"'))
    for number, (name, points) in enumerate(inside.items()):
        colour, height = _COLOURS[number % len(_COLOURS)], 50 + 16 * number
        parts.append(f'<circle cx="{_WIDTH - _LEGEND + 20}" cy="{height}" r="4" fill="{colour}"/>')
        parts.append(text(_WIDTH - _LEGEND + 30, height + 4, name))
        for left, top in map(at, points):
            parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3" fill="{colour}" fill-opacity="0.6"/>')
    return "\n".join([*parts, "</g></svg>"]) + "\n"
