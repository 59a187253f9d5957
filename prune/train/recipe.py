"""Recipes: how a net is trained (epochs, optimiser, schedule, precision, augmentation), as Python and as YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import cos, isfinite, pi
from os import PathLike
from pathlib import Path
from typing import Any

from trtkp.errors import InputError, JobError
from trtkp.pruning.methods.registry import check_settings

__all__ = ["STAGES", "Preprocessing", "Recipe", "Training", "read_recipe"]

#: What a recipe file may describe: training the net that a method makes (DPPNet's first stage), training towards the
#: masks, and fine-tuning with the masks held.
STAGES = ("prepare", "regularise", "finetune")

_SCHEDULES = ("constant", "cosine", "multistep")
_PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """One stage of training with SGD.

    Args:
        epochs: passes over the data; 0 leaves the stage out.
        batch: global batch size, over all processes.
        lr: first learning rate.
        momentum: of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: of every parameter.
        schedule: ``constant``, ``cosine`` (to ``final_lr``, per epoch) or ``multistep``.
        milestones: epochs after which the rate is multiplied by ``gamma``.
        gamma: of ``multistep``.
        final_lr: of ``cosine``.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for automatic mixed precision (with loss scaling for fp16).
        freeze_batch_norm: BatchNorm keeps its statistics.
        distil: weight of the distillation loss from the dense net, 0 to 1; the labels' loss has the rest.
        temperature: of the distillation.
    """

    epochs: int = 0
    batch: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    final_lr: float = 0.0
    precision: str = "fp32"
    freeze_batch_norm: bool = False
    distil: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1:
            raise InputError(f"{self.epochs} epochs in batches of {self.batch}: not a training")
        numbers = (self.lr, self.momentum, self.weight_decay, self.gamma, self.final_lr, self.temperature)
        if not all(isfinite(number) and number >= 0 for number in numbers) or not self.lr or not self.temperature:
            raise InputError(f"learning rate {self.lr}, momentum {self.momentum}, weight decay {self.weight_decay}: "
                             "not those of a training")  # fmt: skip
        if self.schedule not in _SCHEDULES:
            raise InputError(f"schedule {self.schedule}: not known", remedy=f"use one of {', '.join(_SCHEDULES)}")
        if self.precision not in _PRECISIONS:
            raise InputError(
                f"training precision {self.precision}: not known", remedy=f"use one of {', '.join(_PRECISIONS)}"
            )
        if not 0 <= self.distil <= 1:
            raise InputError(f"distillation weight {self.distil}: not between 0 and 1")

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
    """What happens to images before the net sees them.

    Args:
        mean: of values in 0..1, per channel or one for all; not for arrays of floats, which are taken as they are.
        std: likewise.
        flip: mirror half of the training images left to right.
        pad: pad training images by this many zeros and crop at random to the size they had.
        resized_crop: of image folders, crop a random part of 8 to 100 % of the area in training, and the middle of the
            image resized by 256/224 in evaluation.
        holdout: share of the training data to measure accuracy on, where the data has no part of its own for that.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    flip: bool = False
    pad: int = 0
    resized_crop: bool = False
    holdout: float = 0.1

    def __post_init__(self) -> None:
        if not all(deviation > 0 for deviation in self.std):
            raise InputError(f"std {self.std}: not positive")
        if self.pad < 0 or not 0 <= self.holdout < 1:
            raise InputError(f"pad {self.pad}, holdout {self.holdout}: not a size and a share")


@dataclass(frozen=True)
class Training:
    """Everything that a recipe file holds."""

    method: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    data: Preprocessing = field(default_factory=Preprocessing)
    prepare: Recipe = field(default_factory=Recipe)
    regularise: Recipe = field(default_factory=Recipe)
    finetune: Recipe = field(default_factory=Recipe)
    seed: int = 0

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
    """A recipe file.

    Raises:
        InputError: not such a file, a name that means nothing, or a bad value; the message says which.
        JobError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise JobError("recipes need PyYAML, which is not installed", remedy="pip install 'trtkp[train]'") from None
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise InputError(f"not a readable recipe ({reason})", file=path) from None
    try:
        top = _checked(found or {}, {"method", "settings", "data", "seed", *STAGES}, "the recipe")
        settings = {key: _setting(value) for key, value in _checked(top.get("settings", {}), None, "settings").items()}
        if (method := top.get("method")) is not None:
            check_settings(_number(method, str, "method"), settings)
        stages = {name: _made(Recipe, top[name], name) for name in STAGES if name in top}
        return Training(
            method=method,
            settings=settings,
            data=_made(Preprocessing, top.get("data", {}), "data"),
            seed=_number(top.get("seed", 0), int, "seed"),
            **stages,
        )
    except InputError as error:
        raise error.in_file(path) from None


def _made(kind: Any, given: Any, where: str) -> Any:
    """A dataclass from a mapping whose values have the types of its defaults."""
    defaults = {item.name: item.default for item in fields(kind)}
    values = {}
    for key, value in _checked(given, set(defaults), where).items():
        default = defaults[key]
        if isinstance(default, tuple):
            items = value if isinstance(value, list) else [value]
            item = int if key == "milestones" else float
            values[key] = tuple(_number(one, item, f"{where}.{key}") for one in items)
        else:
            values[key] = _number(value, type(default), f"{where}.{key}")
    return kind(**values)


def _checked(given: Any, known: set[str] | None, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{where} is no mapping of names")
    for key in given:
        if known is not None and key not in known:
            raise InputError(f"{where}: {key} means nothing", remedy=f"use {', '.join(sorted(known))}")
    return given


def _setting(value: Any) -> Any:
    """A setting of a method; "1e-4", which YAML takes for text, is a number."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _number(value: Any, kind: type, where: str) -> Any:
    """A value of the wanted type; 1 is a float too, and "1e-4", which YAML takes for text."""
    if kind is float and type(value) in (int, float, str):
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is kind:
        return value
    raise InputError(f"{where}: {value!r} is no {kind.__name__}")
