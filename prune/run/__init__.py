"""``trtkp prune``: model file → masks, with or without training → a directory that ``trtkp build`` takes."""

from __future__ import annotations

from trtkp.pruning.run.folder import training_folder
from trtkp.pruning.run.options import PruneOptions, with_epochs
from trtkp.pruning.run.run import prune

__all__ = ["PruneOptions", "prune", "training_folder", "with_epochs"]
