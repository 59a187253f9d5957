"""The study's result file, one JSON row per line. A kill can cut off the last line, which is then ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["add_row", "read_rows"]


def read_rows(path: Path, scale: str | None = None) -> list[dict[str, Any]]:
    """The rows of a result file; of rows with the same name the last one. With ``scale``, only rows of that scale."""
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
    """Append a row to a result file. It starts a new line even if the line before it was cut off."""
    broken = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if broken else "") + json.dumps(row) + "\n")
