"""`prune`, from a model file to the directory that ``trtkp prune`` writes."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from trtkp.bundle import BundleWriter
from trtkp.bundle.pruned import Pruned, PrunedManifest
from trtkp.bundle.writer import check_replaceable
from trtkp.errors import InputError
from trtkp.pruning.method import Method
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.run.folder import forget_training
from trtkp.pruning.run.options import PruneOptions, check_tensorboard
from trtkp.pruning.run.outcome import Outcome
from trtkp.pruning.run.stages import Progress, Stages
from trtkp.pruning.run.subject import Subject
from trtkp.pruning.run.writing import PrunedWriter

__all__ = ["prune"]


def prune(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    method: str | Method = "kep",
    options: PruneOptions | None = None,
    data: str | PathLike[str] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Pruned:
    """Prune a model, training it before and after where data and epochs are given.

    Interrupted, the next call with the same arguments goes on from the last checkpoint, which lies beside the output.
    Under torchrun all processes train, and the first one writes.

    Args:
        model: model file, in any form that `trtkp.model.load_model` takes; training needs one from PyTorch.
        output: directory to write; an older one there is replaced once the new one is whole.
        method: a method, or its name with ``settings``.
        options: training and so on.
        data: what to train and measure accuracy with; see `trtkp.pruning.train.data.load_parts`.
        progress: called as the work goes on.
        settings: of the method.

    Raises:
        InputError: bad options, model or data; nothing was written.
        JobError: the training failed, or TensorBoard was asked for and is not there; an older directory is untouched,
            and the last good checkpoint is kept.
    """
    from trtkp.pruning.train.processes import joined

    options = options or PruneOptions()
    chosen = make_method(method, **settings) if isinstance(method, str) else method
    training = options.training
    chosen.check_training(
        prepare=training.prepare.epochs, regularise=training.regularise.epochs, finetune=training.finetune.epochs
    )
    target = Path(output)
    check_replaceable(target)
    check_tensorboard(options, target)
    if data is None:
        if training.epochs:
            raise InputError(f"{training.epochs} epochs of training need data", remedy="give --data")
        outcome = Outcome(Subject.load(Path(model), None, chosen, options), chosen)
        _prune_untrained(outcome, training.seed)
        return Pruned(target, _write(outcome, options, target))
    processes = joined()
    outcome = Outcome(Subject.load(Path(model), Path(data), chosen, options), chosen)
    Stages(outcome, options, target, processes, progress).run()
    published = _write(outcome, options, target) if processes.first else None
    processes.wait()
    return Pruned(target, published)


def _prune_untrained(outcome: Outcome, seed: int) -> None:
    """Mask the weights as the file holds them, or let the method convert the net."""
    if outcome.method.converts:
        outcome.module = outcome.subject.converted(outcome.method, seed)
    else:
        outcome.prune_one_shot(outcome.subject.weights)


def _write(outcome: Outcome, options: PruneOptions, output: Path) -> PrunedManifest:
    outcome.deploy()
    with BundleWriter(output) as writer:
        pruned = PrunedWriter(outcome, options, output, writer.staging)
        pruned.write()
        manifest = writer.publish(pruned.manifest)
    forget_training(output)
    return manifest
