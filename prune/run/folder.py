"""What a training keeps beside the output while it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

from trtkp.pruning.train.log import LOG_FILE

__all__ = ["checkpoint_file", "forget_training", "log_file", "training_folder"]


def training_folder(output: Path) -> Path:
    """The folder: hidden, and named after the output."""
    return output.absolute().with_name(f".{output.absolute().name}.training")


def checkpoint_file(output: Path) -> Path:
    """What an interrupted training goes on from."""
    return training_folder(output) / "checkpoint.safetensors"


def log_file(output: Path) -> Path:
    """A row for every epoch."""
    return training_folder(output) / LOG_FILE


def forget_training(output: Path) -> None:
    """Remove the folder."""
    shutil.rmtree(training_folder(output), ignore_errors=True)
