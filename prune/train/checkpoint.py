"""Checkpoints of a training: one safetensors file with tensors, and with numbers as JSON in its header.

A checkpoint is written beside the old one, flushed to the disk and renamed, so a kill at any moment leaves a complete
checkpoint. One file holds tensors and numbers, so the two cannot be from different moments. Nothing in it is code, and
loading one executes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkp.errors import InputError
from trtkp.files import reading, replacing, writing

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "load_checkpoint", "pack_optimizer", "save_checkpoint", "unpack_optimizer"]

_KEY = "trtkp.training"
_VERSION = 1


@dataclass
class Checkpoint:
    """The state of a training.

    Attributes:
        fingerprint: hash of what is trained and how; a checkpoint of another training is refused.
        stage: name of the stage.
        epoch: epochs done in this stage.
        step: iterations done in the epoch that is under way.
        totals: of that epoch so far: sum of the loss, right decisions, samples.
        numbers: ``optimizer`` and ``scaler``, the state of each that is not a tensor; ``notes``; and ``row``, the log
            row of an epoch that has just ended, without its accuracy.
        tensors: those of the model, the optimiser, the regulariser and the masks; the part is the prefix of the name.
    """

    fingerprint: str
    stage: str
    epoch: int
    step: int
    totals: tuple[float, float, float] = (0.0, 0.0, 0.0)
    numbers: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with a prefix, by the rest of their names."""
        return {name[len(prefix) + 1 :]: value for name, value in self.tensors.items() if name.startswith(f"{prefix}.")}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint. A kill at any moment leaves the old one or the new one, complete.

    Raises:
        JobError: it cannot be written.
    """
    from safetensors.torch import save_file

    numbers = {key: value for key, value in _fields(checkpoint).items() if key != "tensors"}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in checkpoint.tensors.items()}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(tensors, part, {_KEY: json.dumps({"version": _VERSION, **numbers})})


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Read the checkpoint at ``path``; None if there is no file.

    Raises:
        InputError: the file is not a checkpoint, is damaged, or belongs to another training.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    remedy = "give --restart to begin anew"
    try:
        with reading(path, "checkpoint", remedy), safe_open(path, framework="pt") as file:
            numbers = json.loads((file.metadata() or {})[_KEY])
            if numbers.pop("version") != _VERSION:
                raise InputError("is a checkpoint of another version", file=path, remedy=remedy)
            if numbers["fingerprint"] != fingerprint:
                raise InputError(
                    "is a checkpoint of another net, data, method or recipe",
                    file=path,
                    remedy="give the options that it was started with, --restart to begin anew, or another -o",
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return Checkpoint(tensors=tensors, **{**numbers, "totals": tuple(numbers["totals"])})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"is not a readable checkpoint ({error})", file=path, remedy=remedy) from None


def _fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields by name; `dataclasses.asdict` would copy every tensor."""
    return {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors and numbers, both by ``<number of the parameter>.<name>``."""
    import torch

    tensors, numbers = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put the state that `pack_optimizer` returned back into an optimiser."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
