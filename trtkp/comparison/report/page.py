"""Render the report: template, plots, density maps, and plotly.js, in one HTML file that works without a network.

plotly's JavaScript is one file of 4.8 MB. Gzip and base64 reduce it to 2 MB, and every browser since 2023 can unpack
gzip itself. A content security policy forbids the page to make any request.
"""

from __future__ import annotations

import gzip
import io
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.comparison.files import check_target
from trtkp.comparison.result import Comparison
from trtkp.comparison.words import bytes_text, difference_text, ratio_text, verdict
from trtkp.files import write_file
from trtkp.machine.packages import require

__all__ = ["check_packages", "render", "write_report"]

_PACKAGES = {"plotly": "plotly", "jinja2": "jinja2", "PIL": "pillow"}


def check_packages() -> None:
    """Check that the packages for a report are installed. Called before the measurements, which can take hours.

    Raises:
        JobError: a package is missing.
    """
    require("a report", "report", _PACKAGES)


def write_report(comparison: Comparison, path: str | os.PathLike[str], *, command: str | None = None) -> Path:
    """Write a comparison as an HTML report.

    Args:
        comparison: the result of `trtkp.compare`.
        path: the file to write. An existing one is replaced only when the new one is complete.
        command: command line of the comparison, which the report shows.

    Returns:
        The path of the report.

    Raises:
        InputError: there is no place for the file.
        JobError: a package is missing, or the file cannot be written.

    Example:
        >>> import trtkp
        >>> comparison = trtkp.compare(["dense", "kep"], runs=5, openings=1, layers=False)
        >>> trtkp.write_report(comparison, "report.html").name
        'report.html'
    """
    path = Path(path)
    check_packages()
    check_target(path)
    write_file(path, render(comparison, command=command))
    return path


def render(comparison: Comparison, *, command: str | None = None) -> str:
    """Render a comparison as the text of an HTML page; see `write_report`.

    Raises:
        JobError: a package is missing.
    """
    check_packages()
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    from trtkp.comparison.report.figures import COLOURS, figures

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "bytes": bytes_text,
        "ms": lambda value: f"{value:.3f}",
        "ratio": ratio_text,
        "difference": difference_text,
        "script": _script,
    }
    folder = files(__package__)
    parts = {name: (folder / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    return environment.from_string(parts["html"]).render(
        title=_title(comparison),
        comparison=comparison,
        verdicts=[verdict(comparison, entry) for entry in comparison.entries[1:]],
        figures=figures(comparison),
        maps=_pictures(comparison),
        legend=_legend(),
        colours=COLOURS,
        command=command,
        css=parts["css"],
        js=parts["js"],
        plotly=b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode(),  # mtime=0: the same bytes always
    )


def _title(comparison: Comparison) -> str:
    others = [entry.label for entry in comparison.entries[1:]]
    return f"{', '.join(others)} against {comparison.baseline.label}"


def _script(text: str) -> Any:
    """Escape JSON for a script element, so that no string in it can end the element."""
    from markupsafe import Markup

    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - in JSON, both spellings are the same string


def _pictures(comparison: Comparison) -> list[dict[str, Any]]:
    """The density maps of every engine that has index sets, as data URLs."""
    return [
        {"label": entry.label, "maps": [(one, _picture(one.cells), _picture(one.taps)) for one in entry.density_maps]}
        for entry in comparison.entries
        if entry.density_maps
    ]


def _picture(cells: npt.NDArray[np.uint8]) -> str:
    """A map as a PNG in a data URL."""
    from PIL import Image

    image = Image.fromarray(cells)
    image.putpalette([channel for colour in _palette() for channel in colour])
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"


def _palette() -> Sequence[tuple[int, int, int]]:
    """The colour map Viridis in 256 steps: dark for removed, bright for kept."""
    from plotly.colors import sample_colorscale

    colours = sample_colorscale("Viridis", [step / 255 for step in range(256)], colortype="tuple")
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def _legend() -> Mapping[str, str]:
    stops = [_palette()[step] for step in range(0, 256, 51)]
    return {"gradient": ", ".join(f"rgb({r},{g},{b})" for r, g, b in stops)}
