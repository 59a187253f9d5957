"""The files that a training keeps beside its output until it has finished: a checkpoint and a log."""

from __future__ import annotations

import shutil
from pathlib import Path

from trtkp.pruning.train.log import LOG_FILE

__all__ = ["checkpoint_file", "forget_training", "log_file", "training_folder"]


def training_folder(output: Path) -> Path:
    """The hidden folder beside the output, ``.<name of the output>.training``."""
    return output.absolute().with_name(f".{output.absolute().name}.training")


def checkpoint_file(output: Path) -> Path:
    """The checkpoint from which an interrupted training continues."""
    return training_folder(output) / "checkpoint.safetensors"


def log_file(output: Path) -> Path:
    """The CSV file with one row per epoch."""
    return training_folder(output) / LOG_FILE


def forget_training(output: Path) -> None:
    """Remove the folder of checkpoint and log, if there is one."""
    shutil.rmtree(training_folder(output), ignore_errors=True)
