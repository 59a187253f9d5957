"""The result file ``gpu.json``: parts that hold items. It is written every few seconds, so a killed run can resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["CONTEXT_LOST", "Part", "Record"]

#: Exit status that asks run.sh for a new process: after an illegal memory access the CUDA context cannot be used.
CONTEXT_LOST = 75
#: Seconds between two writes of the file; a run that is killed loses at most what it measured since the last.
WRITE_SECONDS = 2.0


class Record:
    """The file ``gpu.json``: the provenance of every run that wrote to it, and parts with their items by key.

    Args:
        path: the file. If it exists, its content is kept, and items that it holds are not measured again.
        provenance: provenance of this run.

    Raises:
        SystemExit: the file holds results of another GPU.
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
        """Write the file, unless it was written within the last `WRITE_SECONDS`."""
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
    """One part. Its items are measured in order until the deadline; the next run measures the rest.

    Args:
        record: the file.
        name: name of the part.
        deadline: value of `time.monotonic` after which no new item starts.
        is_usable: called after a failure; says whether this process can still use the device.
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
        """Whether all its items have been measured."""
        return bool(self._items["done"])

    @property
    def items(self) -> dict[str, Any]:
        """The items measured so far, by key."""
        found: dict[str, Any] = self._items["items"]
        return found

    def measure(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """An item, from the file or measured now; None if the deadline has passed.

        A failure is recorded with its message and not tried again, so that the items after it are still measured.

        Raises:
            SystemExit: with `CONTEXT_LOST`, if this process cannot use the device after the failure.
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
            print("  this process can no longer use the device", flush=True)
            self._record.write()
            raise SystemExit(CONTEXT_LOST)
        return found

    def close(self) -> None:
        """Record whether the part is finished."""
        self._items["done"] = self.complete
        self._record.write()

    @property
    def failures(self) -> list[str]:
        """One line for each item that failed and for each wrong result."""
        failed = [f"{key}: {item['failed']}" for key, item in self.items.items() if "failed" in item]
        return failed + [line for item in self.items.values() for line in item.get("failures", [])]
