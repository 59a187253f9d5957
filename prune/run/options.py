"""How to prune, as ``trtkp prune`` takes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from trtkp.errors import InputError
from trtkp.machine.packages import require
from trtkp.model.options import Arch, InputShape, TrustPickle
from trtkp.pruning.method import Method
from trtkp.pruning.options import Include, Skip
from trtkp.pruning.run.folder import training_folder
from trtkp.pruning.train.recipe import Training
from trtkp.settings import Setting, check

__all__ = ["PruneOptions", "check_tensorboard", "with_epochs"]


@dataclass(frozen=True)
class PruneOptions:
    """How to prune; without epochs in ``training`` nothing is trained.

    Raises:
        InputError: a value of another type or out of its bounds.
    """

    input_shape: InputShape = ()
    include: Include = ()
    skip: Skip = ()
    arch: Arch = None
    trust_pickle: TrustPickle = False
    training: Training = field(default_factory=Training)
    device: Annotated[
        str | None,
        Setting("Where to train, such as cpu or cuda.", default="a GPU where there is one", group="Training"),
    ] = None
    restart: Annotated[bool, Setting("Start an interrupted training again from the beginning.", group="Training")] = (
        False
    )
    test_every: Annotated[
        int, Setting("Epochs between two accuracies in the log, 0 for none.", ge=0, group="Training")
    ] = 1
    tensorboard: Annotated[
        str | PathLike[str] | None, Setting("Folder for TensorBoard's event files.", group="Training")
    ] = None

    def __post_init__(self) -> None:
        check(self)


def check_tensorboard(options: PruneOptions, output: Path) -> None:
    """Check that TensorBoard's event files can be written and that pruning will not remove them.

    Raises:
        InputError: nothing is trained, or the folder is a file or lies in a directory that pruning replaces.
        JobError: the package tensorboard is not installed.
    """
    if options.tensorboard is None:
        return
    folder, remedy = Path(options.tensorboard), "choose another --tensorboard"
    if not options.training.epochs:
        raise InputError("--tensorboard needs training", remedy="give --epochs, or leave it out")
    require("--tensorboard", "train", {"tensorboard": "tensorboard"})
    if folder.exists() and not folder.is_dir():
        raise InputError("exists and is not a directory", file=folder, remedy=remedy)
    if any(folder.resolve().is_relative_to(gone.resolve()) for gone in (output, training_folder(output))):
        raise InputError("lies in a directory that pruning replaces", file=folder, remedy=remedy)


def with_epochs(
    training: Training, method: Method, *, epochs: int | None = None, regularise: int | None = None, **changes: Any
) -> Training:
    """A recipe with the numbers of the command line put in.

    Args:
        training: the recipe.
        method: the method, which says what stages there are.
        epochs: epochs of the fine-tune; None for the recipe's. They also count for the stages ``prepare`` and
            ``regularise`` where neither the recipe nor ``regularise`` gives these a number.
        regularise: epochs of the stage ``regularise``; None for the recipe's.
        changes: fields of `Recipe` to set in every stage.

    Raises:
        InputError: ``regularise`` for a method without such a stage, or a value out of its bounds.
    """
    training = training.with_stage("finetune", epochs=epochs, **changes)
    if method.prepares:
        first = epochs if epochs is not None and not training.prepare.epochs else None
        training = training.with_stage("prepare", epochs=first, **changes)
    if not method.regularises:
        if regularise:
            raise InputError(f"method {method.name} has no option --regularise-epochs", remedy="leave it out")
        return replace(training, regularise=replace(training.regularise, epochs=0))
    if regularise is None and epochs is not None and not training.regularise.epochs:
        regularise = epochs
    return training.with_stage("regularise", epochs=regularise, **changes)
