"""What a search leaves behind: a folder with allocation, record and plot, whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trtkp.errors import InputError
from trtkp.search.plot import trade_off
from trtkp.search.run import SearchResult

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
        "allocation": result.allocation.model_dump(exclude_none=True),
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
    """Write the files, all or none; an older search gives way.

    Args:
        result: see there.
        folder: checked by `check_output`.
        title: of the plot.
    """
    folder = folder.absolute()
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        allocation = result.allocation.model_dump(exclude_none=True)
        (new / ALLOCATION).write_text(json.dumps(allocation, indent=1) + "\n")
        (new / RECORD).write_text(json.dumps(document(result), indent=1) + "\n")
        (new / PLOT).write_text(trade_off(result, title), encoding="utf-8")
        new.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(new, folder)  # noqa: PTH104 - onto an absent or empty folder only
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
