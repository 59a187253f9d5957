"""The log of a training: a CSV file with one row per epoch, and TensorBoard's event files if the user wants them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtkp.errors import InputError
from trtkp.files import replacing, writing

__all__ = ["FIELDS", "LOG_FILE", "TrainingLog"]

LOG_FILE = "log.csv"

#: Columns of the CSV file. ``seconds`` are those of the epoch's training, without the measurement of accuracy.
FIELDS = ("stage", "epoch", "lr", "loss", "train_accuracy", "test_accuracy", "seconds", "extra")


class TrainingLog:
    """Appends one row per epoch. A training that continues after a kill continues in the same files.

    Args:
        folder: folder for ``log.csv``.
        events: folder for TensorBoard's event files, with one run per stage; None for no event files.
    """

    def __init__(self, folder: Path, events: Path | None = None) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG_FILE
        self._events = events
        self._writer: Any = None

    def begin(self, stage: str, epoch: int) -> None:
        """Start to log a stage at ``epoch``, counted from 1.

        Rows that an earlier run wrote for this and later epochs are dropped: they will be trained again.

        Raises:
            InputError: event files cannot be written to their folder.
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
                f"event files cannot be written there ({error.strerror or error})",
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
        with writing(self.path), replacing(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows[:keep] if all(row[name] is not None for name in FIELDS))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append the row of one epoch, with values for `FIELDS`; missing ones stay empty."""
        self._append(row)
        if self._writer is not None:
            for name in ("lr", "loss", "train_accuracy", "test_accuracy"):
                if row.get(name) not in (None, ""):
                    self._writer.add_scalar(name, float(row[name]), int(row["epoch"]))
            self._writer.flush()

    def _append(self, row: Mapping[str, Any]) -> None:
        new = not self.path.exists()
        with writing(self.path), self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow({name: row.get(name, "") for name in FIELDS})

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
