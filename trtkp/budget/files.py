"""What a search leaves behind: a folder with allocation, record and plot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trtkp.budget.plot import trade_off
from trtkp.budget.run import SearchResult
from trtkp.comparison.files import write_text
from trtkp.errors import InputError

__all__ = ["ALLOCATION", "PLOT", "RECORD", "check_output", "document", "write"]

ALLOCATION, RECORD, PLOT = "allocation.json", "search.json", "trade-off.html"


def check_output(folder: Path) -> None:
    """Refuse to replace anything but an older search.

    Raises:
        InputError: something else is there.
    """
    if not folder.absolute().parent.is_dir():
        raise InputError("no such folder", file=folder.absolute().parent)
    if folder.exists() and not (folder.is_dir() and _only_a_search(folder)):
        raise InputError("is there already, and is no search", file=folder, remedy="give another -o")


def _only_a_search(folder: Path) -> bool:
    """Whether nothing but an older search would be lost with the folder."""
    names = {entry.name for entry in folder.iterdir()}
    return not names or (RECORD in names and names <= {ALLOCATION, RECORD, PLOT})


def document(result: SearchResult) -> dict[str, Any]:
    """Everything about a search, as JSON has it."""
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
    """Write the files, each whole or not at all; those of an older search give way.

    Args:
        result: see there.
        folder: checked by `check_output`.
        title: of the plot.

    Raises:
        InputError: it cannot be written.
    """
    texts = {
        PLOT: trade_off(result, title),
        RECORD: json.dumps(document(result), indent=1) + "\n",
        ALLOCATION: json.dumps(result.allocation.as_dict(), indent=1) + "\n",
    }
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=folder) from None
    for name, text in texts.items():
        write_text(folder / name, text)
