r"""The one trainer: towards a method's masks, or with masks held, with or without a dense teacher.

    loss = (1 - d) · CE(y, z) + d · T² · KL(softmax(t / T) || softmax(z / T)) + the regulariser's

with logits z, the teacher's logits t and the recipe's distillation weight d and temperature T. Pruned weights are zero
at every forward pass (`pruning.masked`). A training that was killed goes on from its last checkpoint with the same
weights as one that was not: order, augmentation and dropout are drawn from seed, epoch and iteration alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trtkp.errors import InputError, JobError
from trtkp.pruning.masked import frozen_masks
from trtkp.pruning.train.checkpoint import Checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from trtkp.pruning.train.log import TrainingLog
from trtkp.pruning.train.modes import set_training
from trtkp.pruning.train.processes import Processes
from trtkp.pruning.train.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.method import Masks
    from trtkp.pruning.regulariser import Regulariser

__all__ = ["Batches", "Trainer", "evaluate", "fine_tune"]

#: Iterations between two looks at whether the loss is still a number: each look waits for the device.
_LOOK = 10


class Batches(Protocol):
    """Training data; `trtkp.pruning.train.data.Loader` is one."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """Inputs, labels and the global number of samples of every batch from ``first`` on."""


@dataclass
class Trainer:
    """One stage of training.

    Args:
        model: classifier giving logits [N, classes]; changed in place, in evaluation mode afterwards.
        batches: the data.
        recipe: how.
        stage: its name, for messages, log and checkpoints.
        masks: masks to hold; pruned weights get no gradient and stay exactly zero.
        regulariser: a method's hooks.
        teacher: the dense net, for distillation.
        seed: of dropout.
        device: where to train; the model's own without it.
        test: gives the accuracy of the model, for the log.
        test_every: epochs between two such accuracies; 0 for none.
        checkpoint: file to keep checkpoints in; None keeps none.
        fingerprint: of this training, for `load_checkpoint`.
        keep: tensors that go into every checkpoint under their own names.
        notes: figures that go into every checkpoint, as JSON has them.
        seconds: between two checkpoints inside an epoch.
        log: gets a row per epoch.
        progress: called with a phase, the steps done and the steps in all.
    """

    model: torch.nn.Module
    batches: Batches
    recipe: Recipe
    stage: str = "finetune"
    masks: Masks | None = None
    regulariser: Regulariser | None = None
    teacher: torch.nn.Module | None = None
    seed: int = 0
    device: torch.device | None = None
    test: Callable[[torch.nn.Module], float] | None = None
    test_every: int = 1
    checkpoint: Path | None = None
    fingerprint: str = ""
    keep: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 600.0
    log: TrainingLog | None = None
    progress: Callable[[str, int, int], None] | None = None
    processes: Processes = field(default_factory=Processes)

    def run(self, start: Checkpoint | None = None) -> None:
        """Train to the end of the recipe, or until the regulariser has finished.

        Args:
            start: where to go on from.

        Raises:
            InputError: the model's output is not [N, classes], or labels that it does not have.
            JobError: the loss is no number any more; the last checkpoint is from before.
        """
        import torch

        recipe = self.recipe
        device = self.device or next(self.model.parameters()).device
        self.model.to(device)
        self._device = device
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        first, step = (start.epoch, start.step) if start is not None else (0, 0)
        self._totals = torch.zeros(3, dtype=torch.float64)
        if start is not None:
            self._restore(start)
        self._since = torch.zeros(3, dtype=torch.float64, device=device)
        self._saved = time.monotonic()
        row = start.numbers.get("row") if start is not None else None
        if self.log is not None and self.processes.first:
            self.log.begin(self.stage, first + (row is None))
        held = frozen_masks(self.model, self.masks) if self.masks else nullcontext()
        with torch.random.fork_rng(), held:
            self._module = self.processes.wrapped(self.model)
            if row is not None:
                self._report(row)  # again: a kill may have come while its accuracy was measured
            for epoch in range(first, recipe.epochs):
                if epoch and self.regulariser is not None and self.regulariser.finished:
                    break
                self._epoch(epoch, step)
                step = 0
        set_training(self.model, False)

    def _epoch(self, epoch: int, first: int) -> None:
        began, count = time.monotonic(), len(self.batches)
        lr = self.recipe.rate(epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._start_mode()
        for step, (inputs, labels, total) in enumerate(self.batches.epoch(epoch, first), first):
            self._seed(epoch, step)
            self._step(inputs, labels, total, lr)
            if (step + 1) % _LOOK == 0:
                due = time.monotonic() - self._saved > self.seconds
                self._look(epoch, weights=due)
                if due:
                    self._save(epoch, step + 1)
            if self.progress is not None:
                self.progress(f"{self.stage.capitalize()} {epoch + 1}/{self.recipe.epochs}", step + 1, count)
        self._look(epoch, weights=True)
        if self.regulariser is not None:
            self.regulariser.after_epoch(epoch + 1)
        row = self._row(epoch + 1, lr, time.monotonic() - began)
        self._totals.zero_()
        self._save(epoch + 1, 0, row)
        self._report(row)

    def _row(self, epoch: int, lr: float, seconds: float) -> dict[str, Any]:
        """What the log says of an epoch of so many seconds, but for the accuracy that is yet to be measured."""
        loss, right, samples = self._totals.tolist()
        samples = max(1.0, samples)
        extra = self.regulariser.report() if self.regulariser is not None else {}
        return {
            "stage": self.stage, "epoch": epoch, "lr": f"{lr:.6g}", "loss": f"{loss / samples:.6g}",
            "train_accuracy": f"{right / samples:.6g}", "seconds": f"{seconds:.3g}",
            "extra": " ".join(f"{k}={v:.6g}" for k, v in extra.items() if isinstance(v, float)),
        }  # fmt: skip

    def _report(self, row: Mapping[str, Any]) -> None:
        """Measure the accuracy where it is due, and log the epoch."""
        row = dict(row)
        if self.test is not None and self.test_every and row["epoch"] % self.test_every == 0:
            row["test_accuracy"] = f"{self.test(self.model):.6g}"
        if self.log is not None and self.processes.first:
            self.log.add(row)

    def _start_mode(self) -> None:
        set_training(self.model, True, freeze_batch_norm=self.recipe.freeze_batch_norm)

    def _seed(self, epoch: int, step: int) -> None:
        import torch

        key = np.random.SeedSequence([self.seed, epoch, step, self.processes.rank])
        torch.manual_seed(int(key.generate_state(1)[0]))

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor, total: int, lr: float) -> None:
        import torch

        low, high = int(labels.min()), int(labels.max())  # before they are on the device, which need not be waited for
        inputs, labels = inputs.to(self._device), labels.to(self._device)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.recipe.precision)
        with torch.autocast(self._device.type, half, enabled=half is not None):
            logits = self._module(inputs)
        _check_logits(logits, low, high)
        # the mean over the global batch: gradients are averaged over the processes
        loss = self._loss(inputs, logits.float(), labels) * (self.processes.world / total)
        extra = self.regulariser.loss() if self.regulariser is not None else None
        whole = loss if extra is None else loss + extra
        self._optimizer.zero_grad()
        self._scaler.scale(whole).backward()
        if self.regulariser is not None:
            self._scaler.unscale_(self._optimizer)
            self.regulariser.after_backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.regulariser is not None:
            self.regulariser.after_step(lr)
        with torch.no_grad():
            right = (logits.argmax(dim=1) == labels).sum()
            mine = torch.tensor(len(labels), dtype=torch.float64, device=self._device)
            self._since += torch.stack([whole.detach().double() * total / self.processes.world, right.double(), mine])

    def _loss(self, inputs: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed over the samples."""
        import torch
        from torch.nn.functional import cross_entropy, kl_div, log_softmax

        loss = cross_entropy(logits, labels, reduction="sum")
        if self.teacher is None or not self.recipe.distil:
            return loss
        d, T = self.recipe.distil, self.recipe.temperature
        with torch.no_grad():
            target = log_softmax(self.teacher(inputs).float() / T, dim=1)
        distance = kl_div(log_softmax(logits / T, dim=1), target, reduction="sum", log_target=True)
        return (1 - d) * loss + d * T * T * distance

    def _look(self, epoch: int, *, weights: bool = False) -> None:
        """Add up what happened since the last look, in all processes, and stop where it is no number.

        The last step before a checkpoint can break ``weights`` that no loss has seen yet.
        """
        self._totals += self.processes.sum(self._since).cpu()
        self._since.zero_()
        broken = "the loss" if not isfinite(float(self._totals[0])) else None
        if broken is None and weights and not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            broken = "a weight"
        if broken is None:
            return
        kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint and self.checkpoint.exists() else ""
        raise JobError(
            f"{broken} is no number any more in {self.stage}, epoch {epoch + 1}" + (f"; {kept}" if kept else ""),
            remedy="lower the learning rate, or train in fp32",
        )

    def _save(self, epoch: int, step: int, row: Mapping[str, Any] | None = None) -> None:
        self._saved = time.monotonic()
        if self.checkpoint is None or not self.processes.first:
            return
        tensors, numbers = pack_optimizer(self._optimizer)
        parts = {
            "model": self.model.state_dict(),
            "optimizer": tensors,
            "regulariser": self.regulariser.state() if self.regulariser is not None else {},
        }
        loss, right, samples = self._totals.tolist()
        save_checkpoint(
            self.checkpoint,
            Checkpoint(
                self.fingerprint,
                self.stage,
                epoch,
                step,
                (loss, right, samples),
                {"optimizer": numbers, "scaler": self._scaler.state_dict(), "notes": dict(self.notes), "row": row},
                dict(self.keep)
                | {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()},
            ),
        )

    def _restore(self, start: Checkpoint) -> None:
        import torch

        self.model.load_state_dict(start.part("model"))
        unpack_optimizer(self._optimizer, start.part("optimizer"), start.numbers["optimizer"])
        if start.numbers["scaler"]:
            self._scaler.load_state_dict(start.numbers["scaler"])
        if self.regulariser is not None:
            self.regulariser.restore(start.part("regulariser"))
        self._totals = torch.tensor(start.totals, dtype=torch.float64)


def _check_logits(logits: object, low: int, high: int) -> None:
    """Logits [N, classes], and labels that are among the classes."""
    shape = list(getattr(logits, "shape", [])) or type(logits).__name__
    if not isinstance(shape, list) or len(shape) != 2:
        raise InputError(f"the model gives {shape}, training needs logits [N, classes]")
    if low < 0 or high >= shape[1]:
        raise InputError(
            f"the data has labels {low}..{high}, the model has {shape[1]} classes",
            remedy="give the data that the model is for",
        )


def evaluate(
    model: torch.nn.Module, batches: Batches, device: torch.device, processes: Processes | None = None
) -> float:
    """Share of samples that the model decides as their labels say; it is left in evaluation mode."""
    import torch

    set_training(model, False)
    counts = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for inputs, labels, _ in batches.epoch(0):
            right = (model(inputs.to(device)).argmax(dim=1).cpu() == labels).sum()
            counts += torch.tensor([float(right), float(len(labels))], dtype=torch.float64)
    counts = (processes or Processes()).sum(counts.to(device)).cpu()
    return float(counts[0] / counts[1].clamp_min(1))


@dataclass
class _Given:
    """Batches of a function that gives an epoch at each call."""

    batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]

    def __len__(self) -> int:
        return 1 << 62  # not known; only the end of an epoch asks

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        del number, first
        for inputs, labels in self.batches():
            yield inputs, labels, len(labels)


def fine_tune(
    model: torch.nn.Module,
    masks: Masks,
    batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]],
    *,
    epochs: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> None:
    """Train the kept weights with cross-entropy, SGD and a cosine schedule; the model is in eval mode afterwards.

    Args:
        model: classifier giving logits [N, classes]; changed in place.
        masks: masks to hold; an empty mapping trains everything.
        batches: called once per epoch, gives (input [N, ...], label [N]).
        epochs: passes over the data.
        lr: first learning rate, annealed to zero.
        momentum: of SGD.
        weight_decay: of SGD.
    """
    recipe = Recipe(epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay)
    Trainer(model, _Given(batches), recipe, masks=masks).run()
