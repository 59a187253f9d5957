"""The stages of a training: towards the masks, then with the masks held; each from where it was interrupted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.prune.method import Masks
from trtkp.prune.nm import refined
from trtkp.prune.regulariser import Converting, Trainable, can_regularise
from trtkp.prune.train.recipe import STAGES
from trtkp.pruning.options import PruneOptions
from trtkp.pruning.outcome import Outcome

if TYPE_CHECKING:
    import torch

    from trtkp.prune.train.checkpoint import Checkpoint
    from trtkp.prune.train.data import Dataset
    from trtkp.prune.train.processes import Processes

__all__ = ["Progress", "Stages", "forget", "log_file", "training_folder"]

Progress = Callable[[str, int, int], None]


def training_folder(output: Path) -> Path:
    """Where a training keeps its checkpoint and its log: beside the output, hidden."""
    return output.absolute().with_name(f".{output.absolute().name}.training")


def log_file(output: Path) -> Path:
    """The log in `training_folder`."""
    return training_folder(output) / "log.csv"


def forget(output: Path) -> None:
    """Remove what the training kept beside the output."""
    shutil.rmtree(training_folder(output), ignore_errors=True)


class Stages:
    """Trains the subject of an outcome, and fills the outcome."""

    def __init__(
        self,
        outcome: Outcome,
        options: PruneOptions,
        output: Path,
        processes: Processes,
        progress: Progress | None = None,
    ) -> None:
        import torch

        assert outcome.subject.parts is not None
        self._outcome, self._subject, self._method = outcome, outcome.subject, outcome.method
        self._parts, self._options = outcome.subject.parts, options
        self._processes, self._progress = processes, progress
        self._output, self._checkpoint = output, training_folder(output) / "checkpoint.safetensors"
        self._device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._module = self._subject.source.module().to(self._device)

    def run(self) -> None:
        """Every stage, from the checkpoint of an interrupted training where there is one."""
        outcome = self._outcome
        start = self._begin()
        if "dense" not in outcome.accuracy:
            outcome.accuracy["dense"] = self._measure()
        if isinstance(self._method, Converting):
            self._module = self._subject.convert(self._method, self._options.training.seed).to(self._device)
        outcome.module = self._module
        if start is not None and start.stage == "finetune":
            outcome.take(*(_masks_of(start.part(part)) for part in ("mask", "list")))
            self._fine_tune(start)
        else:
            self._towards_masks(start)
            self._fine_tune(None)
        outcome.accuracy["pruned"] = self._measure()

    def _begin(self) -> Checkpoint | None:
        """The checkpoint to go on from."""
        from trtkp.prune.train.checkpoint import load_checkpoint

        if self._options.restart and self._processes.first:
            forget(self._output)
        self._processes.wait()
        start = load_checkpoint(self._checkpoint, self._fingerprint())
        where = (STAGES.index(start.stage), start.epoch, start.step) if start is not None else (-1, 0, 0)
        if not self._processes.agree(where, self._device):
            raise InputError(
                "is not the same for every process",
                file=self._checkpoint,
                remedy="put -o where all nodes see it, or give --restart to begin anew",
            )
        notes = start.numbers.get("notes", {}) if start is not None else {}
        self._outcome.accuracy, self._outcome.report = notes.get("accuracy", {}), notes.get("report", {})
        return start

    def _towards_masks(self, start: Checkpoint | None) -> None:
        """The stages before the masks are there, and the masks."""
        training = self._options.training
        if training.prepare.epochs and (start is None or start.stage == "prepare"):
            self._stage("prepare", start)
            start = None
        if can_regularise(self._method) and training.regularise.epochs:
            self._outcome.take(*self._regularised(start))
        elif not isinstance(self._method, Converting):
            self._outcome.prune_one_shot(self._weights())

    def _regularised(self, start: Checkpoint | None) -> tuple[Masks, Masks]:
        """Masks that the method trains towards, and the lists of those with 2:4 inside."""
        assert isinstance(self._method, Trainable)
        regulariser = self._method.regulariser(self._module, self._subject.layers)
        self._stage("regularise", start, regulariser=regulariser)
        self._outcome.report = regulariser.report()
        masks, lists = regulariser.masks(), {}
        regulariser.finish()
        if getattr(self._method, "nm", None) is not None:
            lists, masks = masks, refined(masks, self._weights(), self._subject.layers)
        if getattr(self._method, "retrain", False):
            from trtkp.prune.train.initialise import initialise

            initialise(self._module, self._options.training.seed)
        return masks, lists

    def _fine_tune(self, start: Checkpoint | None) -> None:
        """The last stage, with the masks held."""
        import torch

        from trtkp.prune.masked import apply_masks

        outcome = self._outcome
        held = outcome.all_masks
        apply_masks(self._module, held)
        if "one-shot" not in outcome.accuracy:
            outcome.accuracy["one-shot"] = self._measure()
        if not self._options.training.finetune.epochs:
            return
        keep = {
            f"{part}.{name}": torch.from_numpy(mask.astype(np.uint8))
            for part, masks in (("mask", outcome.masks), ("list", outcome.lists))
            for name, mask in masks.items()
        }
        repairs, before = getattr(self._method, "reactivate", False), {}
        if repairs and start is not None:
            before = {name: weight.numpy() for name, weight in start.part("before").items()}
        elif repairs:
            before = self._weights()
        keep |= {f"before.{name}": torch.from_numpy(weight) for name, weight in before.items()}
        self._stage("finetune", start, masks=held, keep=keep)
        if repairs:
            self._reactivate(before)

    def _reactivate(self, before: Mapping[str, npt.NDArray[Any]]) -> None:
        """Let layers read the filters before them that the fine-tune left unmoved."""
        import torch

        from trtkp.graph.chains import next_convolutions
        from trtkp.prune.regulariser import layer_parameters
        from trtkp.prune.vskp import reactivate, unmoved_filters

        subject, masks = self._subject, self._outcome.masks
        tuned, parameters = self._weights(), layer_parameters(self._module, subject.layers)
        restored = {}
        for name, following in next_convolutions(subject.graph).items():
            if name not in masks or following not in masks:
                continue
            channels = unmoved_filters(before[name], tuned[name])
            mask, weight = reactivate(channels, masks[following], subject.weights[following], tuned[following])
            if changed := int((mask & ~masks[following])[:, :, 0, 0].sum()):
                restored[following] = changed
                masks[following] = mask
                with torch.no_grad():
                    parameters[following].copy_(torch.from_numpy(weight))
        self._outcome.report["reactivated"] = restored

    def _stage(self, name: str, start: Checkpoint | None, **options: Any) -> None:
        from trtkp.prune.train.log import TrainingLog
        from trtkp.prune.train.trainer import Trainer

        outcome, training = self._outcome, self._options.training
        recipe = getattr(training, name)
        began = time.perf_counter()
        log = TrainingLog(self._checkpoint.parent) if self._processes.first else None
        if log is not None:
            log.forget(name, start.epoch + 1 if start is not None else 1)
        teacher = None
        if recipe.distil:
            from trtkp.prune.train.modes import set_training

            teacher = self._subject.source.module().to(self._device)
            set_training(teacher, False)
        trainer = Trainer(
            self._module,
            self._loader(self._parts.train, recipe.batch, augment=True),
            recipe,
            stage=name,
            teacher=teacher,
            seed=training.seed,
            device=self._device,
            test=lambda _: self._measure(),
            test_every=self._options.test_every,
            checkpoint=self._checkpoint,
            fingerprint=self._fingerprint(),
            notes={"accuracy": outcome.accuracy, "report": outcome.report},
            log=log,
            progress=self._progress,
            processes=self._processes,
            **options,
        )
        try:
            trainer.run(start)
        finally:
            if log is not None:
                log.close()
        outcome.seconds[name] = round(time.perf_counter() - began, 3)

    def _loader(self, data: Dataset, batch: int, *, augment: bool) -> Any:
        from trtkp.prune.train.data import Loader

        training = self._options.training
        return Loader(
            data, training.data, batch=batch, seed=training.seed, processes=self._processes, augment=augment
        )  # fmt: skip

    def _measure(self) -> float:
        from trtkp.prune.train.trainer import evaluate

        batches = self._loader(self._parts.test, self._options.training.finetune.batch, augment=False)
        return evaluate(self._module, batches, self._device, self._processes)

    def _weights(self) -> dict[str, npt.NDArray[Any]]:
        """Of the layers, as they are now."""
        from trtkp.prune.regulariser import layer_weights

        return layer_weights(self._module, self._subject.layers)

    def _fingerprint(self) -> str:
        """Everything that the weights depend on."""
        known = {
            "source": self._subject.source.sha256,
            "method": [self._method.name, self._method.settings()],
            "layers": [layer.name for layer in self._subject.layers],
            "training": self._options.training.as_dict(),
            "data": self._parts.digest(),
        }
        return sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def _masks_of(stored: Mapping[str, torch.Tensor]) -> Masks:
    """Masks as a checkpoint holds them."""
    return {name: mask.numpy().astype(bool) for name, mask in stored.items()}
