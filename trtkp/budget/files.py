"""Write the result of a search: a directory with the allocation, the record of all measurements, and the plot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trtkp.budget.plot import trade_off
from trtkp.budget.run import SearchResult
from trtkp.errors import InputError
from trtkp.files import write_file, writing

__all__ = ["ALLOCATION", "PLOT", "RECORD", "check_output", "document", "write"]

ALLOCATION, RECORD, PLOT = "allocation.json", "search.json", "trade-off.html"


def check_output(folder: Path) -> None:
    """Check that the directory is new, empty, or the result of an older search.

    Raises:
        InputError: it holds something else, or its parent does not exist.
    """
    if not folder.absolute().parent.is_dir():
        raise InputError("no such folder", file=folder.absolute().parent)
    if folder.exists() and not (folder.is_dir() and _only_a_search(folder)):
        raise InputError("exists already and is not the result of a search", file=folder, remedy="give another -o")


def _only_a_search(folder: Path) -> bool:
    """Whether the directory is empty or holds nothing but the files of a search."""
    names = {entry.name for entry in folder.iterdir()}
    return not names or (RECORD in names and names <= {ALLOCATION, RECORD, PLOT})


def document(result: SearchResult) -> dict[str, Any]:
    """The content of ``search.json``: options, measurements and results."""
    return {
        "format": 1,
        "options": {**asdict(result.options), "settings": dict(result.options.settings)},
        "measure": result.measure,
        "dense": asdict(result.dense),
        "found": asdict(result.found),
        "measured": {**asdict(result.measured), "share": result.measured.share},
        "reached": result.reached,
        "allocation": result.allocation.as_dict(),
        "layers": {
            name: {
                "chosen": layer.index(result.chosen[name]),
                "choices": [{**asdict(choice.level), **_numbers(choice)} for choice in layer],
            }
            for name, layer in result.choices.items()
        },
        "points": [asdict(point) for point in result.points],
    }


def _numbers(choice: Any) -> dict[str, float]:
    return {"latency_ms": round(choice.latency_ms, 6), "macs": choice.macs, "error": choice.error}


def write(result: SearchResult, folder: Path, title: str) -> None:
    """Write the files. Each is replaced in one step, so that none is ever half written.

    Args:
        result: the result of the search.
        folder: the directory, checked by `check_output` before the search.
        title: title of the plot.

    Raises:
        JobError: a file cannot be written.
    """
    texts = {
        PLOT: trade_off(result, title),
        RECORD: json.dumps(document(result), indent=1) + "\n",
        ALLOCATION: json.dumps(result.allocation.as_dict(), indent=1) + "\n",
    }
    with writing(folder):
        folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        write_file(folder / name, text)
