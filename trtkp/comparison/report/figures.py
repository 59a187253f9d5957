"""The plots of the report.

The page sets the colours of text, grid and background, because they depend on the reader's light or dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from trtkp.comparison.layers import BETWEEN, CONVOLUTION, MATRIX, MOVE, OTHER
from trtkp.comparison.result import Comparison, Entry, LayerTime, LayerTimes

__all__ = ["COLOURS", "Figure", "figures"]

#: Colours of the engines, the baseline's (grey) first. They differ on light and dark backgrounds, and for most
#: colour-blind readers.
COLOURS = ("#8a919e", "#2f81f7", "#e8890c", "#1aa179", "#b063d6", "#d64545", "#12a5c4", "#9a7b2f")
_GROUPS = {CONVOLUTION: "#2f81f7", MATRIX: "#b063d6", MOVE: "#e8890c", OTHER: "#1aa179", BETWEEN: "#8a919e"}
#: Smaller relative differences are drawn at this value, because a logarithmic axis has no zero. It is below the
#: rounding error of float32.
_IDENTICAL = 1e-9


class Figure:
    """A plot and its explanation.

    Attributes:
        name: id of its HTML element.
        title: heading.
        text: what the plot shows, for readers who see such a plot for the first time.
        json: the plot in the format of plotly.js.
        height: height in pixels.
    """

    def __init__(self, name: str, title: str, text: str, figure: go.Figure, height: int) -> None:
        figure.update_layout(
            template="none",
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            margin={"l": 8, "r": 12, "t": 8, "b": 8},
            legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "xanchor": "left", "x": 0},
            height=height,
        )
        figure.update_xaxes(automargin=True)
        figure.update_yaxes(automargin=True)
        self.name, self.title, self.text, self.height = name, title, text, height
        self.json: str = figure.to_json()


def figures(comparison: Comparison) -> list[Figure]:
    """Make all plots for which the comparison has data."""
    made = [_quality(comparison), _speed_up(comparison)]
    if len(comparison.batches) > 1:
        made.append(_throughput(comparison))
    profiled = [(entry, entry.layers) for entry in comparison.entries if entry.layers is not None]
    if profiled:
        made += [_where(profiled), _layers(comparison, profiled)]
    return made


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


def _quality(comparison: Comparison) -> Figure:
    """Accuracy against latency or, without labels, output difference against latency."""
    entries, batch = comparison.entries, comparison.batches[-1]
    labelled = all(entry.accuracy is not None for entry in entries)
    unit = " %" if labelled else ""
    figure = go.Figure()
    for position, entry in enumerate(entries):
        timing = entry.latencies[-1].timing
        value = 100 * (entry.accuracy or 0) if labelled else _relative(entry)
        figure.add_scatter(
            x=[timing.median_ms],
            y=[value],
            error_x={
                "type": "data",
                "array": [timing.p90_ms - timing.median_ms],
                "arrayminus": [timing.median_ms - timing.p10_ms],
                "thickness": 1.5,
            },
            mode="markers",
            name=escape(entry.label),
            marker={"size": 13, "color": _colour(position), "symbol": "diamond" if position == 0 else "circle"},
            hovertemplate=f"{escape(entry.label)}<br>%{{x:.3f}} ms<br>%{{y:.4~g}}{unit}<extra></extra>",
        )
    figure.update_xaxes(title=f"latency, ms (batch {batch})", rangemode="tozero")
    spread = "The bar through a point spans the 10th to the 90th percentile of its runs."
    if labelled:
        figure.update_yaxes(title="accuracy, %")
        text = f"Up is more accurate, left is faster. {spread}"
        return Figure("quality", "Accuracy against latency", text, figure, 380)
    figure.update_yaxes(title="relative output difference", type="log", exponentformat="power", dtick=1)
    text = (
        "There are no labels, so this shows how far the outputs are from the baseline's, ||y − b|| / ||b||. Down is "
        f"closer, left is faster. Identical outputs (the baseline's own) are drawn at {_IDENTICAL:.0e}. {spread}"
    )
    return Figure("quality", "Output difference against latency", text, figure, 380)


def _relative(entry: Entry) -> float:
    return max(_IDENTICAL, entry.difference.relative if entry.difference is not None else 0.0)


def _speed_up(comparison: Comparison) -> Figure:
    figure = go.Figure()
    batches = [f"batch {batch}" for batch in comparison.batches]
    for position, entry in enumerate(comparison.entries[1:], 1):
        ratios = [latency.speed_up for latency in entry.latencies]
        figure.add_bar(
            x=batches,
            y=[ratio.value for ratio in ratios],
            error_y={
                "type": "data",
                "array": [ratio.high - ratio.value for ratio in ratios],
                "arrayminus": [ratio.value - ratio.low for ratio in ratios],
                "thickness": 1.5,
            },
            name=escape(entry.label),
            offsetgroup=str(position),
            marker_color=_colour(position),
            hovertemplate=f"{escape(entry.label)}, %{{x}}: %{{y:.3f}}x<extra></extra>",
        )
        bound = entry.costs.bound if entry.costs is not None else None
        if bound is not None and bound != 1:
            figure.add_scatter(
                x=batches,
                y=[bound] * len(batches),
                mode="markers",
                marker={"symbol": "line-ew", "size": 26, "line": {"width": 3, "color": _colour(position)}},
                name=f"bound of {escape(entry.label)}",
                offsetgroup=str(position),
                hovertemplate=f"bound of {escape(entry.label)}: %{{y:.2f}}x<extra></extra>",
            )
    figure.add_hline(y=1, line={"color": COLOURS[0], "width": 2, "dash": "dash"})
    figure.update_layout(barmode="group", scattermode="group")
    figure.update_yaxes(title="times as fast", rangemode="tozero")
    text = (
        f"Median time of {comparison.baseline.label} divided by that of each engine, with its 95 % confidence "
        "interval. The dashed line is the baseline. A dash above a bar is the bound 1/density: the speed-up if only "
        "the remaining multiplications took time."
    )
    return Figure("speed-up", f"Speed-up over {comparison.baseline.label}", text, figure, 380)


def _throughput(comparison: Comparison) -> Figure:
    figure = go.Figure()
    for position, entry in enumerate(comparison.entries):
        figure.add_scatter(
            x=[latency.batch for latency in entry.latencies],
            y=[latency.throughput for latency in entry.latencies],
            mode="lines+markers",
            name=escape(entry.label),
            line={"color": _colour(position), "width": 2},
            marker={"size": 9},
            hovertemplate=f"{escape(entry.label)}, batch %{{x}}: %{{y:,.0f}} samples/s<extra></extra>",
        )
    figure.update_xaxes(title="batch", type="log", tickvals=list(comparison.batches))
    figure.update_yaxes(title="samples per second", rangemode="tozero")
    text = "Samples per second at the median latency."
    return Figure("throughput", "Throughput over batch size", text, figure, 360)


def _where(profiled: Sequence[tuple[Entry, LayerTimes]]) -> Figure:
    figure = go.Figure()
    labels = [escape(entry.label) for entry, _ in profiled]
    for group, colour in _GROUPS.items():
        figure.add_bar(
            y=labels,
            x=[times.groups.get(group, 0.0) for _, times in profiled],
            orientation="h",
            name=group,
            marker_color=colour,
            hovertemplate=f"%{{y}}, {group}: %{{x:.4f}} ms<extra></extra>",
        )
    figure.update_layout(barmode="stack", legend_traceorder="normal")
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=f"ms of a profiled run (batch {profiled[0][1].batch})")
    moves = ", ".join(f"{times.moves} in {entry.label}" for entry, times in profiled)
    text = (
        "Time of one profiled run, by kind of operator. Reorders and copies are the cost of a lowering besides its "
        f"multiplications: {moves}. Profiling slows a run, so compare shares here and take latencies from above."
    )
    return Figure("where", "Where the time went", text, figure, 120 + 44 * len(profiled))


def _layers(comparison: Comparison, profiled: Sequence[tuple[Entry, LayerTimes]]) -> Figure:
    """Time of each layer and of its neighbours, with one bar per engine."""
    names: dict[str, None] = {}
    for _, times in profiled:
        names |= dict.fromkeys(layer.name for layer in times.layers)
    figure = go.Figure()
    for entry, times in profiled:
        colour = _colour(comparison.entries.index(entry))
        found = {layer.name: layer for layer in times.layers}
        compute = [found[name].compute_ms if name in found else None for name in names]
        beside = [found[name].neighbours_ms if name in found else None for name in names]
        counts = [_neighbours(found[name]) if name in found else "" for name in names]
        common: dict[str, Any] = {
            "y": [escape(name) for name in names],
            "orientation": "h",
            "offsetgroup": escape(entry.name),
            "legendgroup": escape(entry.name),
        }
        figure.add_bar(
            **common,
            x=compute,
            name=escape(entry.label),
            marker_color=colour,
            hovertemplate=f"%{{y}}<br>{escape(entry.label)}: %{{x:.4f}} ms<extra></extra>",
        )
        figure.add_bar(
            **common,
            x=beside,
            base=compute,
            showlegend=False,
            marker={"color": colour, "opacity": 0.45, "pattern": {"shape": "/"}},
            customdata=counts,
            hovertemplate=f"%{{y}}<br>{escape(entry.label)}, neighbours: %{{customdata}}<extra></extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(
        autorange="reversed",
        tickvals=[escape(name) for name in names],
        ticktext=[escape(_short(name)) for name in names],
    )
    figure.update_xaxes(title=f"ms of a profiled run (batch {profiled[0][1].batch})")
    text = (
        "Solid: the layer's own convolutions or matrix products, including what was fused into them. Hatched: its "
        "neighbours, which are the reorders, copies, sums and quantisers that belong to the layer."
    )
    return Figure("layers", "Layer by layer", text, figure, 130 + len(names) * (12 + 12 * len(profiled)))


def _neighbours(layer: LayerTime) -> str:
    counted = ", ".join(f"{count} {op}" for op, count in layer.neighbours.items())
    return f"{layer.neighbours_ms:.4f} ms ({escape(counted) or 'none'})"


def _short(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
