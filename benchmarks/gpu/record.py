"""The result file: parts of items, written every few seconds, so that a run that is cut off goes on there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["CONTEXT_LOST", "Part", "Record"]

#: Exit status that asks run.sh for a fresh process: an illegal access leaves a CUDA context that answers nothing.
CONTEXT_LOST = 75
#: A run that is killed loses what it measured in so many seconds.
WRITE_SECONDS = 2.0


class Record:
    """``gpu.json``: provenance of every run that wrote into it, and parts with their items by key.

    Args:
        path: the file; what is in it already is kept, and items that it holds are not measured again.
        provenance: of this run.
    """

    def __init__(self, path: Path, provenance: dict[str, Any]) -> None:
        self.path = path
        self.document: dict[str, Any] = {"runs": [], "parts": {}}
        if path.is_file():
            self.document = json.loads(path.read_text(encoding="utf-8"))
        known = {run.get("gpu") for run in self.document["runs"]}
        if known - {provenance.get("gpu")}:
            raise SystemExit(f"{path} holds results of {', '.join(map(str, known))}: give another --out for this GPU")
        self.document["runs"].append(provenance)
        self.write()

    def write_soon(self) -> None:
        """Write unless that was done a moment ago."""
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Replace the file in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)
        self._written = time.monotonic()


class Part:
    """One part: items are measured in order until the deadline; what a run has not reached is the next run's.

    Args:
        record: the file.
        name: of the part.
        deadline: time.monotonic() after which no new item starts.
        is_usable: asked after a failure; whether the device still works for this process.
    """

    def __init__(
        self, record: Record, name: str, deadline: float, is_usable: Callable[[], bool] = lambda: True
    ) -> None:
        self._record = record
        self._items = record.document["parts"].setdefault(name, {"done": False, "items": {}})
        self._deadline = deadline
        self._is_usable = is_usable
        self.name = name
        self.complete = True

    @property
    def done(self) -> bool:
        """Whether an earlier run finished it."""
        return bool(self._items["done"])

    @property
    def items(self) -> dict[str, Any]:
        """What is measured so far."""
        found: dict[str, Any] = self._items["items"]
        return found

    def measure(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The item: from the file, or measured now and written; None when the deadline has passed.

        What fails is recorded with its message and not tried again, so that one failure cannot stop all that follow.

        Raises:
            SystemExit: `CONTEXT_LOST`, when the failure has left the device unusable for this process.
        """
        if key in self.items:
            return self.items[key]  # type: ignore[no-any-return]
        if time.monotonic() >= self._deadline:
            self.complete = False
            return None
        try:
            found = measure()
        except Exception as error:  # a kernel, a library or the memory failed: the other items still count
            found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:500]}
            print(f"  {key}: {found['failed']}", flush=True)
        self.items[key] = found
        self._record.write_soon()
        if "failed" in found and not self._is_usable():
            print("  the device is lost for this process", flush=True)
            self._record.write()
            raise SystemExit(CONTEXT_LOST)
        return found

    def close(self) -> None:
        """Mark what is finished."""
        self._items["done"] = self.complete
        self._record.write()

    @property
    def failures(self) -> list[str]:
        """What failed, and what was found wrong."""
        failed = [f"{key}: {item['failed']}" for key, item in self.items.items() if "failed" in item]
        return failed + [line for item in self.items.values() for line in item.get("failures", [])]
