"""`prune`, from a model file to the directory that ``trtkp prune`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from trtkp.bundle import BundleWriter
from trtkp.bundle.pruned import Pruned, PrunedManifest
from trtkp.bundle.writer import check_replaceable
from trtkp.errors import InputError
from trtkp.pruning.method import Method, SettingValue
from trtkp.pruning.methods.registry import DEFAULT, given_method, make_method
from trtkp.pruning.run.folder import forget_training
from trtkp.pruning.run.options import PruneOptions, check_tensorboard
from trtkp.pruning.run.outcome import Outcome
from trtkp.pruning.run.stages import Progress, Stages
from trtkp.pruning.run.subject import Subject
from trtkp.pruning.run.writing import PrunedWriter
from trtkp.pruning.train.recipe import Training

__all__ = ["prune"]


def prune(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    method: str | Method | None = None,
    options: PruneOptions | None = None,
    data: str | PathLike[str] | None = None,
    progress: Progress | None = None,
    **settings: SettingValue,
) -> Pruned:
    """Prune a model, and train it before and after where ``options`` ask for epochs.

    An interrupted training goes on from its last checkpoint, which lies beside the output, at the next call with the
    same arguments. Under torchrun all processes train, and the first one writes.

    Args:
        model: model file, in any format that `trtkp.load_model` reads; training needs one from PyTorch.
        output: directory to write; an older one there is replaced once the new one is complete.
        method: a method, or its name, which takes ``settings``; None for the method of the recipe in ``options``, and
            for KEP where that names none.
        options: layers, training, device and so on; None for the defaults, which train nothing.
        data: samples [N, ...] and labels [N] to train with and to measure accuracy on: an ``.npz`` file, a folder of
            images for each class, or CIFAR batches.
        progress: called with a phase, the steps done and the steps in all.
        settings: settings of the method, such as ``ratio=0.5, filter_group=16``, over those of a recipe for the same
            method; None for the method's default.

    Returns:
        The pruned model, whose directory `trtkp.build` takes. Of several processes, the first alone has its manifest.

    Raises:
        InputError: an option, a setting, the model or the data cannot be used; nothing was written.
        JobError: the training failed, or a package of the extra ``train`` is missing; an older directory is untouched,
            and the last good checkpoint is kept.

    Example:
        >>> import trtkp
        >>> pruned = trtkp.prune("net.onnx", "pruned", method="vskp", ratio=0.5, filter_group=16)
        >>> sorted(pruned.index_sets)
        ['w1', 'w2']
        >>> bundle = trtkp.build("pruned", "from-pruned", options=trtkp.BuildOptions(backend="onnxruntime"))

        With training, for a model from PyTorch:

        >>> training = trtkp.Training(regularise=trtkp.Recipe(epochs=10), finetune=trtkp.Recipe(epochs=30, lr=0.01))
        >>> options = trtkp.PruneOptions(training=training, device="cpu")
        >>> options.training.epochs
        40
    """
    from trtkp.pruning.train.processes import joined

    options = options or PruneOptions()
    training = options.training
    if method is None or isinstance(method, str):
        chosen = _made(method, training, settings)
    else:
        chosen = given_method(method, settings)
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


def _made(name: str | None, training: Training, settings: Mapping[str, SettingValue]) -> Method:
    """The method of this name, else the recipe's, else KEP; a recipe's settings hold for the method that it names."""
    name = name or training.method or DEFAULT
    of_recipe = training.settings if name == training.method else {}
    return make_method(name, **of_recipe | dict(settings))


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
