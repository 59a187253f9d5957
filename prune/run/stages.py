"""The stages of a training: ``prepare``, ``regularise`` (towards the masks), ``finetune`` (with the masks held).

A training that was interrupted continues in its stage, from its last checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.pruning.method import Masks
from trtkp.pruning.nm import refined
from trtkp.pruning.run.folder import checkpoint_file, forget_training, training_folder
from trtkp.pruning.run.options import PruneOptions
from trtkp.pruning.run.outcome import Outcome
from trtkp.pruning.train.recipe import STAGES

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.train.checkpoint import Checkpoint
    from trtkp.pruning.train.data import Dataset, Loader
    from trtkp.pruning.train.log import TrainingLog
    from trtkp.pruning.train.processes import Processes

__all__ = ["Progress", "Stages"]

Progress = Callable[[str, int, int], None]


class Stages:
    """Trains the subject of an outcome and fills the outcome.

    Args:
        outcome: an empty outcome whose subject has data.
        options: recipe, device and so on.
        output: directory that `prune` will write; checkpoint and log lie beside it.
        processes: the processes that train together.
        progress: called with a stage, the iterations done and the iterations of the epoch.
    """

    def __init__(
        self,
        outcome: Outcome,
        options: PruneOptions,
        output: Path,
        processes: Processes,
        progress: Progress | None = None,
    ) -> None:
        import torch

        assert outcome.subject.split is not None
        self._outcome, self._subject, self._method = outcome, outcome.subject, outcome.method
        self._split, self._options = outcome.subject.split, options
        self._processes, self._progress = processes, progress
        self._output = output
        self._device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def run(self) -> None:
        """Run the stages that are left, starting from the checkpoint of an interrupted training if there is one."""
        outcome = self._outcome
        outcome.module = self._subject.source.module().to(self._device)
        start = self._begin()
        if "dense" not in outcome.accuracy:
            outcome.accuracy["dense"] = self._measure()
        if self._method.converts:
            converted = self._subject.converted(self._method, self._options.training.seed)
            outcome.module = converted.to(self._device)
        if start is not None and start.stage == "finetune":
            outcome.set_masks(*(_masks_of(start.part(part)) for part in ("mask", "list")))
            self._fine_tune(start)
        else:
            self._towards_masks(start)
            self._fine_tune(None)
        outcome.accuracy["pruned"] = self._measure()

    @property
    def _module(self) -> torch.nn.Module:
        assert self._outcome.module is not None
        return self._outcome.module

    def _begin(self) -> Checkpoint | None:
        """Read the checkpoint to continue from, and the figures in it.

        Raises:
            InputError: the checkpoint belongs to another training, or the processes see different checkpoints.
        """
        from trtkp.pruning.train.checkpoint import load_checkpoint

        if self._options.restart and self._processes.first:
            forget_training(self._output)
        self._processes.wait()
        start = load_checkpoint(checkpoint_file(self._output), self._fingerprint())
        where = (STAGES.index(start.stage), start.epoch, start.step) if start is not None else (-1, 0, 0)
        if not self._processes.agree(where, self._device):
            raise InputError(
                "is not the same for every process",
                file=checkpoint_file(self._output),
                remedy="put -o where all nodes see it, or give --restart to begin anew",
            )
        notes = start.numbers.get("notes", {}) if start is not None else {}
        self._outcome.accuracy, self._outcome.report = notes.get("accuracy", {}), notes.get("report", {})
        return start

    def _towards_masks(self, start: Checkpoint | None) -> None:
        """Run the stages ``prepare`` and ``regularise``, then make the masks."""
        training = self._options.training
        if training.prepare.epochs and (start is None or start.stage == "prepare"):
            self._stage("prepare", start)
            start = None
        if self._method.regularises and training.regularise.epochs:
            self._outcome.set_masks(*self._regularised(start))
            if not self._method.converts:  # a converted net no longer has the weights that a report would read
                self._outcome.add_report(self._weights())
        elif not self._method.converts:
            self._outcome.prune_one_shot(self._weights())

    def _regularised(self, start: Checkpoint | None) -> tuple[Masks, Masks]:
        """Run the stage ``regularise``; gives the masks, and for those with 2:4 inside lists the masks of the lists."""
        regulariser = self._method.regulariser(self._module, self._subject.layers)
        self._stage("regularise", start, regulariser=regulariser)
        self._outcome.report = regulariser.report()
        masks, lists = regulariser.masks(), {}
        regulariser.finish()
        if self._method.nm is not None:
            lists, masks = masks, refined(masks, self._weights(), self._subject.layers)
        if self._method.retrain:
            from trtkp.pruning.train.initialise import initialise

            initialise(self._module, self._options.training.seed)
        return masks, lists

    def _fine_tune(self, start: Checkpoint | None) -> None:
        """Run the stage ``finetune`` with the masks held, then the method's repair."""
        import torch

        from trtkp.pruning.masked import apply_masks

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
        before = {}
        if self._method.repairs and start is not None:
            before = {name: weight.numpy() for name, weight in start.part("before").items()}
        elif self._method.repairs:
            before = self._weights()
        keep |= {f"before.{name}": torch.from_numpy(weight) for name, weight in before.items()}
        self._stage("finetune", start, masks=held, keep=keep)
        if self._method.repairs:
            self._repair(before)

    def _repair(self, before: Mapping[str, npt.NDArray[Any]]) -> None:
        """Apply the method's `repair`: its masks, its weights and its figures.

        Args:
            before: the masked weights from before the fine-tune, by parameter name.
        """
        import torch

        from trtkp.pruning.regulariser import layer_parameters

        outcome, subject = self._outcome, self._subject
        repair = self._method.repair(outcome.masks, subject.weights, before, self._weights(), outcome.net)
        outcome.masks |= repair.masks
        outcome.report |= repair.report
        parameters = layer_parameters(self._module, subject.layers) if repair.weights else {}
        with torch.no_grad():
            for name, weight in repair.weights.items():
                parameters[name].copy_(torch.from_numpy(weight))

    def _stage(self, name: str, start: Checkpoint | None, **options: Any) -> None:
        from trtkp.pruning.train.trainer import Trainer

        outcome, training = self._outcome, self._options.training
        recipe = getattr(training, name)
        began = time.perf_counter()
        log = self._log()
        teacher = None
        if recipe.distil:
            from trtkp.pruning.train.modes import set_training

            teacher = self._subject.source.module().to(self._device)
            set_training(teacher, False)
        trainer = Trainer(
            self._module,
            self._loader(self._split.train, recipe.batch, augment=True),
            recipe,
            stage=name,
            teacher=teacher,
            seed=training.seed,
            device=self._device,
            test=lambda _: self._measure(),
            test_every=self._options.test_every,
            checkpoint=checkpoint_file(self._output),
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

    def _log(self) -> TrainingLog | None:
        """The log; None in processes that do not write."""
        from trtkp.pruning.train.log import TrainingLog

        events = self._options.tensorboard
        if not self._processes.first:
            return None
        return TrainingLog(training_folder(self._output), None if events is None else Path(events))

    def _loader(self, data: Dataset, batch: int, *, augment: bool) -> Loader:
        from trtkp.pruning.train.data import Loader

        training = self._options.training
        return Loader(
            data, training.data, batch=batch, seed=training.seed, processes=self._processes, augment=augment
        )  # fmt: skip

    def _measure(self) -> float:
        from trtkp.pruning.train.trainer import evaluate

        batches = self._loader(self._split.test, self._options.training.finetune.batch, augment=False)
        return evaluate(self._module, batches, self._device, self._processes)

    def _weights(self) -> dict[str, npt.NDArray[Any]]:
        """The present weights of the layers."""
        from trtkp.pruning.regulariser import layer_weights

        return layer_weights(self._module, self._subject.layers)

    def _fingerprint(self) -> str:
        """A hash of everything that the trained weights depend on; a checkpoint with another one is refused."""
        known = {
            "source": self._subject.source.sha256,
            "method": [self._method.name, self._method.settings()],
            "layers": [layer.name for layer in self._subject.layers],
            "training": self._options.training.as_dict(),
            "data": self._split.digest(),
        }
        return sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def _masks_of(stored: Mapping[str, torch.Tensor]) -> Masks:
    """Masks from the uint8 tensors of a checkpoint."""
    return {name: mask.numpy().astype(bool) for name, mask in stored.items()}
