"""The log of a training: a CSV file, and TensorBoard's event files where they are asked for."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtkp.errors import InputError

__all__ = ["FIELDS", "LOG_FILE", "TrainingLog"]

LOG_FILE = "log.csv"

#: Seconds are those of the training, without the measuring.
FIELDS = ("stage", "epoch", "lr", "loss", "train_accuracy", "test_accuracy", "seconds", "extra")


class TrainingLog:
    """Appends a row per epoch; a training that goes on after a kill goes on in the same files.

    Args:
        folder: where ``log.csv`` goes.
        events: where TensorBoard's event files go, a run for every stage; without it there are none.
    """

    def __init__(self, folder: Path, events: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG_FILE
        self._events = events
        self._writer: Any = None

    def begin(self, stage: str, epoch: int) -> None:
        """Log a stage from ``epoch`` on; what an earlier run wrote of it from there on, and what follows, is dropped.

        Raises:
            InputError: no event files can be written there.
        """
        self._forget(stage, epoch)
        if self._events is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        try:
            self._writer = SummaryWriter(str(self._events / stage), purge_step=epoch)
        except OSError as error:
            raise InputError(
                f"no event files can be written there ({error.strerror or error})",
                file=self._events,
                remedy="choose another --tensorboard",
            ) from None

    def _forget(self, stage: str, epoch: int) -> None:
        if not self.path.exists():
            return
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        at = [(row["stage"], row["epoch"]) for row in rows]  # text: a kill can cut the last row short
        keep = at.index((stage, str(epoch))) if (stage, str(epoch)) in at else len(rows)
        partial = self.path.with_name(f"{self.path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows[:keep] if all(row[name] is not None for name in FIELDS))
        partial.replace(self.path)

    def add(self, row: Mapping[str, Any]) -> None:
        """One epoch."""
        self._append(row)
        if self._writer is not None:
            for name in ("lr", "loss", "train_accuracy", "test_accuracy"):
                if row.get(name) not in (None, ""):
                    self._writer.add_scalar(name, float(row[name]), int(row["epoch"]))
            self._writer.flush()

    def _append(self, row: Mapping[str, Any]) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow({name: row.get(name, "") for name in FIELDS})

    def close(self) -> None:
        """Give the event file back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
