"""The study's result file: a row a line, which a kill can cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["add_row", "read_rows"]


def read_rows(path: Path, scale: str | None = None) -> list[dict[str, Any]]:
    """The rows of a result file, the last of each name, of one scale where that is given."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off when the process was killed
        if scale is None or row["scale"] == scale:
            rows[row["name"]] = row
    return list(rows.values())


def add_row(path: Path, row: dict[str, Any]) -> None:
    """One line at the end of a result file, on a line of its own whatever was cut off before it."""
    broken = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if broken else "") + json.dumps(row) + "\n")
