"""What a search has measured so far, in a folder beside its output, so that a search that is killed goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

__all__ = ["State"]


class State:
    """Numbers by name, written down as they come.

    Args:
        output: what the search will write; the state lies beside it, hidden.
        key: of everything that the numbers depend on; numbers of another key are forgotten.
    """

    def __init__(self, output: Path, key: str) -> None:
        self.folder = output.absolute().with_name(f".{output.absolute().name}.searching")
        self._file = self.folder / "tables.json"
        self._key = key
        try:
            read = json.loads(self._file.read_text())
        except (OSError, ValueError):
            read = None
        if not isinstance(read, dict) or read.get("key") != key or not isinstance(read.get("values"), dict):
            shutil.rmtree(self.folder, ignore_errors=True)
            read = {"values": {}}
        self._values: dict[str, Any] = read["values"]

    @property
    def journal(self) -> Path:
        """File for the trials."""
        self.folder.mkdir(exist_ok=True)
        return self.folder / "trials.log"

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value
        self.folder.mkdir(exist_ok=True)
        written = self._file.with_suffix(".new")
        written.write_text(json.dumps({"key": self._key, "values": self._values}))
        written.replace(self._file)

    def discard(self) -> None:
        """Forget everything: the search is over."""
        shutil.rmtree(self.folder, ignore_errors=True)
