"""The HTML file: template, plots, pictures of index sets, and plotly.js inside it, compressed.

``plotly`` brings its JavaScript as one file of 4.8 MB; gzip and base64 make it 2 MB, and every browser since 2023
unpacks gzip by itself. A content security policy forbids the page any request.
"""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from trtkp.comparison.result import Comparison, DensityMap
from trtkp.comparison.words import difference_text, ratio_text, verdict
from trtkp.engine.base import importable
from trtkp.errors import InputError, JobError
from trtkp.text import bytes_text

__all__ = ["check_target", "render", "write_report"]

#: Package to module.
_NEEDED = {"plotly": "plotly", "jinja2": "jinja2", "pillow": "PIL"}


def check_target(path: Path, *, report: bool = False) -> None:
    """Refuse a place that cannot be written before hours of timing; of a report also what it needs.

    Raises:
        InputError: a directory, or in one that is not there.
        JobError: a package is missing.
    """
    missing = [name for name, module in _NEEDED.items() if not importable(module)] if report else []
    if missing:
        raise JobError(f"a report needs {', '.join(missing)}", remedy="pip install 'trtkp[report]'")
    if path.is_dir():
        raise InputError("is a directory", file=path, remedy="name a file")
    if not path.absolute().parent.is_dir():
        raise InputError("its folder is not there", file=path, remedy="make it, or choose another place")


def write_report(comparison: Comparison, path: str | os.PathLike[str], *, command: str | None = None) -> Path:
    """Write the report; what stood there before is replaced only when the new one is whole.

    Args:
        comparison: what to show.
        path: of the file.
        command: the command line that led to it, shown as it is.

    Raises:
        InputError: a place that cannot be written.
        JobError: a package is missing.
    """
    path = Path(path)
    check_target(path, report=True)
    write_text(path, render(comparison, command=command))
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # a temporary file is its owner's alone
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=path) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def render(comparison: Comparison, *, command: str | None = None) -> str:
    """The report as text.

    Raises:
        JobError: a package is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from plotly.offline import get_plotlyjs

        from trtkp.comparison.report.figures import COLOURS, figures
    except ImportError as error:
        raise JobError(f"a report needs {error.name}", remedy="pip install 'trtkp[report]'") from None
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
        plotly=b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode(),
    )


def _title(comparison: Comparison) -> str:
    others = [entry.label for entry in comparison.entries[1:]]
    return f"{', '.join(others)} against {comparison.baseline.label}"


def _script(text: str) -> Any:
    """Text for a script element: nothing in it can end the element."""
    from markupsafe import Markup

    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - JSON, in which that is the same string


def _pictures(comparison: Comparison) -> list[dict[str, Any]]:
    """The density maps of every engine that has index sets."""
    return [
        {"label": entry.label, "maps": [(_map, _picture(_map)) for _map in entry.density_maps]}
        for entry in comparison.entries
        if entry.density_maps
    ]


def _picture(density: DensityMap) -> str:
    """A PNG of a map as a data URL."""
    from PIL import Image

    image = Image.fromarray(density.cells)
    image.putpalette([channel for colour in _palette() for channel in colour])
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"


def _palette() -> Sequence[tuple[int, int, int]]:
    """Viridis in 256 steps, dark for removed."""
    from plotly.colors import sample_colorscale

    colours = sample_colorscale("Viridis", [step / 255 for step in range(256)], colortype="tuple")
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def _legend() -> Mapping[str, str]:
    stops = [_palette()[step] for step in range(0, 256, 51)]
    return {"gradient": ", ".join(f"rgb({r},{g},{b})" for r, g, b in stops)}
