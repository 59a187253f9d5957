"""Recipes: how a net is trained (epochs, optimiser, schedule, precision, augmentation), as Python and as YAML files."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from math import cos, pi
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from trtkp.data.options import Mean, Std
from trtkp.errors import InputError, JobError
from trtkp.files import read_file
from trtkp.pruning.methods.registry import check_settings
from trtkp.settings import Setting, check, from_mapping

__all__ = ["STAGES", "Preprocessing", "Recipe", "Training", "read_recipe"]

#: What a recipe file may describe: training the net that a method makes (DPPNet's first stage), training towards the
#: masks, and fine-tuning with the masks held.
STAGES = ("prepare", "regularise", "finetune")

#: Bytes that a recipe may have: PyYAML reads about 1 MB in ten seconds.
_MOST = 1 << 18
#: Levels of maps and lists in a recipe. Ours have three.
_DEEPEST = 20
_SCHEDULES = ("constant", "cosine", "multistep")
_PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """One stage of training with SGD.

    Raises:
        InputError: a value of another type or out of its bounds.
    """

    epochs: Annotated[
        int,
        Setting(
            "Epochs of the fine-tune, in which pruned weights stay at zero.",
            ge=0,
            default="the recipe's, else 0",
            group="Training",
            essential=True,
        ),
    ] = 0
    batch: Annotated[int, Setting("Global batch size, over all processes.", ge=1, group="Training", essential=True)] = (
        128
    )
    lr: Annotated[float, Setting("First learning rate.", gt=0, group="Training", essential=True)] = 0.01
    momentum: Annotated[float, Setting("Momentum of SGD.", ge=0, command_line=False)] = 0.9
    nesterov: Annotated[bool, Setting("Use Nesterov's momentum.", command_line=False)] = False
    weight_decay: Annotated[float, Setting("Weight decay of every parameter.", ge=0, command_line=False)] = 1e-4
    schedule: Annotated[
        str,
        Setting(
            "How the learning rate falls: constant, cosine (to final_lr, each epoch) or multistep.",
            choices=_SCHEDULES,
            command_line=False,
        ),
    ] = "cosine"
    milestones: Annotated[
        tuple[int, ...], Setting("Epochs after which multistep multiplies the rate by gamma.", ge=0, command_line=False)
    ] = ()
    gamma: Annotated[float, Setting("Factor of multistep.", ge=0, command_line=False)] = 0.1
    final_lr: Annotated[float, Setting("Last learning rate of cosine.", ge=0, command_line=False)] = 0.0
    precision: Annotated[
        str,
        Setting(
            "Precision of the training: fp32, or bf16 or fp16 for automatic mixed precision.",
            choices=_PRECISIONS,
            flag="--amp",
            group="Training",
        ),
    ] = "fp32"
    freeze_batch_norm: Annotated[bool, Setting("Keep the statistics of batch normalisation.", command_line=False)] = (
        False
    )
    distil: Annotated[
        float,
        Setting(
            "Weight of the distillation loss from the dense net; the loss of the labels has the rest.",
            ge=0,
            le=1,
            group="Training",
        ),
    ] = 0.0
    temperature: Annotated[float, Setting("Temperature of the distillation.", gt=0, command_line=False)] = 4.0

    def __post_init__(self) -> None:
        check(self)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0.

        Example:
            >>> cosine = Recipe(epochs=4, lr=0.1)
            >>> [round(cosine.rate(epoch), 4) for epoch in range(4)]
            [0.1, 0.0854, 0.05, 0.0146]
        """
        if self.schedule == "cosine":
            return self.final_lr + (self.lr - self.final_lr) * (1 + cos(pi * epoch / max(1, self.epochs))) / 2
        if self.schedule == "multistep":
            return self.lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        return self.lr


@dataclass(frozen=True)
class Preprocessing:
    """What happens to images before the net sees them; arrays of floats are taken as they are.

    Raises:
        InputError: a value of another type or out of its bounds.
    """

    mean: Mean = (0.0,)
    std: Std = (1.0,)
    flip: Annotated[bool, Setting("Mirror half of the training images left to right.", command_line=False)] = False
    pad: Annotated[
        int,
        Setting(
            "Pad training images by this many zeros and crop them at random to their old size.",
            ge=0,
            command_line=False,
        ),
    ] = 0
    resized_crop: Annotated[
        bool,
        Setting(
            "Of image folders, crop a random part of 8 to 100 % of the area in training, and the middle of the image "
            "resized by 256/224 in evaluation.",
            command_line=False,
        ),
    ] = False
    holdout: Annotated[
        float,
        Setting(
            "Share of the training data to measure accuracy on, where the data has no part of its own for that.",
            ge=0,
            lt=1,
            command_line=False,
        ),
    ] = 0.1

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Training:
    """Everything that a recipe file holds: a method, and the stages of training; a stage of 0 epochs is left out.

    Attributes:
        method: name of the pruning method; None for the one that `trtkp.prune` is given.
        settings: its settings.
        data: what happens to images before the net sees them.
        prepare: training of the net that a method makes of the given one, as DPPNet does.
        regularise: training that pushes weights towards the masks, for methods that have such a penalty.
        finetune: training with the masks held.
        seed: of the order of samples, augmentation and dropout.
    """

    method: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    data: Preprocessing = field(default_factory=Preprocessing)
    prepare: Recipe = field(default_factory=Recipe)
    regularise: Recipe = field(default_factory=Recipe)
    finetune: Recipe = field(default_factory=Recipe)
    seed: Annotated[int, Setting("Seed of the order of samples, augmentation and dropout.", group="Training")] = 0

    @property
    def epochs(self) -> int:
        """Epochs of all stages together; 0 means that nothing is trained."""
        return sum(getattr(self, stage).epochs for stage in STAGES)

    def with_stage(self, stage: str, **changes: Any) -> Training:
        """A copy in which fields of one stage are changed; values of None change nothing."""
        given = {key: value for key, value in changes.items() if value is not None}
        if not given:
            return self
        changed = {stage: replace(getattr(self, stage), **given)}
        return replace(self, **changed)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON can hold it, for the manifest."""
        return asdict(self)


def read_recipe(path: str | PathLike[str]) -> Training:
    """Read a recipe file: a method with its settings, and how the net is trained with it.

    Args:
        path: a YAML file.

    Returns:
        The training, for `trtkp.PruneOptions`.

    Raises:
        InputError: the file is no recipe, a name is not known, or a value is wrong; the message says which.
        JobError: PyYAML is not installed.

    Example:
        >>> from pathlib import Path
        >>> import trtkp
        >>> _ = Path("kep.yaml").write_text("{method: kep, settings: {n: 4}, finetune: {epochs: 40, lr: 0.01}}")
        >>> training = trtkp.read_recipe("kep.yaml")
        >>> training.method, training.finetune.epochs
        ('kep', 40)
    """
    try:
        import yaml
    except ImportError:
        raise JobError("recipes need PyYAML, which is not installed", remedy="pip install 'trtkp[train]'") from None
    path = Path(path)
    content = read_file(path, "recipe", most=_MOST)
    try:
        text = content.decode("utf-8")
        _check_plain(yaml, text)
        found = yaml.safe_load(text)
    # ValueError: a number or a date that Python cannot hold
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"not a readable recipe ({' '.join(str(error).split())})", file=path) from None
    try:
        training = from_mapping(Training, found or {}, "the recipe")
        training = replace(training, settings={key: _setting(value) for key, value in training.settings.items()})
        if training.method is not None:
            check_settings(training.method, training.settings)
    except InputError as error:
        raise error.in_file(path) from None
    return training


def _check_plain(yaml: Any, text: str) -> None:
    """Refuse what a few lines could make large or slow: aliases stand for billions of values, and nesting for hours.

    Raises:
        ValueError: there is any.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias: write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")


def _setting(value: Any) -> Any:
    """A setting of a method; "1e-4", which YAML takes for text, is a number."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value
