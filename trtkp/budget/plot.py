"""Draw the trade-off of a search, as one HTML page that needs no other file and no network."""

from __future__ import annotations

from trtkp.budget.run import Point, SearchResult

__all__ = ["trade_off"]


def trade_off(result: SearchResult, title: str) -> str:
    """The HTML page: score against latency and against MACs.

    It shows the search at several budgets, every level applied to all layers alike, and the net that was found.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    scored = result.measure is not None
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=("against latency", "against MACs"),
    )  # fmt: skip
    for column, cost in ((1, "latency"), (2, "macs")):
        for name, points in _lines(result).items():
            points.sort(key=lambda point: getattr(point, cost))
            figure.add_trace(
                go.Scatter(
                    x=[100 * getattr(point, cost) for point in points],
                    y=[100 * (point.score or 0) if scored else point.loss for point in points],
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    mode="markers" if name == "found" else "lines+markers",
                    marker={"symbol": "star", "size": 16} if name == "found" else {"size": 7},
                    line={"width": 3 if name == "searched" else 1},
                    customdata=[point.name for point in points],
                    hovertemplate="%{customdata}<br>%{x:.1f} %, %{y:.4g}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="% of the dense net's", rangemode="tozero")
    figure.update_yaxes(title_text=f"{result.measure}, %, not trained" if scored else "relative error", col=1)
    figure.update_layout(
        title={"text": title, "automargin": True, "yref": "container"}, template="plotly_white",
        legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    page: str = figure.to_html(include_plotlyjs=True, config={"responsive": True, "displaylogo": False})
    return page.replace("<head>", '<head><meta name="viewport" content="width=device-width, initial-scale=1">', 1)


def _lines(result: SearchResult) -> dict[str, list[Point]]:
    """The points of each line: one line for the search, and one per granularity for levels applied to all layers."""
    dense = next(point for point in result.points if point.name == "dense")
    lines: dict[str, list[Point]] = {"searched": [dense]}
    for point in result.points:
        if point.name == "searched":
            lines["searched"].append(point)
        elif point is not dense:
            lines.setdefault(f"every layer alike, {point.name.split(' of ')[1]}", [dense]).append(point)
    return {**lines, "found": [result.found]}
