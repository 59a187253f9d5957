r"""The trainer of all methods. It trains a net towards its masks or with masks held, with or without a dense teacher.

    loss = (1 - d) · CE(y, z) + d · T² · KL(softmax(t / T) || softmax(z / T)) + regulariser's term

with labels y, logits z, the teacher's logits t, and the recipe's distillation weight d and temperature T (Hinton et al.
2015, arXiv:1503.02531). Pruned weights are exactly zero at every forward pass (`trtkp.pruning.masked`).

A training that was killed and continues from its last checkpoint reaches the same weights as one that was not killed,
because order, augmentation and dropout depend on seed, epoch and iteration alone.
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

#: Iterations between two checks that the loss is still finite. Each check waits for the device, so not every iteration
#: has one.
_CHECK_EVERY = 10


class Batches(Protocol):
    """Training data; `trtkp.pruning.train.data.Loader` is one."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """The batches of an epoch, from number ``first`` on: inputs, labels, samples of the batch in all processes."""


@dataclass
class Trainer:
    """One stage of training.

    Args:
        model: a classifier with logits [N, classes]. It is changed in place and left in evaluation mode.
        batches: the training data.
        recipe: epochs, optimiser, schedule and so on.
        stage: name of the stage, for messages, log and checkpoints.
        masks: masks to hold, by parameter name. Pruned weights get no gradient and stay exactly zero.
        regulariser: a method's hooks.
        teacher: the dense net, for distillation.
        seed: seed of dropout.
        device: where to train; None for the model's own device.
        test: measures the accuracy of the model, for the log.
        test_every: epochs between two such measurements; 0 for none.
        checkpoint: file of the checkpoints; None for no checkpoints.
        fingerprint: hash of everything that the training depends on, for `load_checkpoint`.
        keep: tensors to put into every checkpoint under their own names.
        notes: figures to put into every checkpoint; values that JSON can hold.
        seconds: least time between two checkpoints inside an epoch. There is one after every epoch anyway.
        log: gets one row per epoch.
        progress: called with the stage and epoch, the iterations done and the iterations of the epoch.
        processes: the processes that train together.
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
            start: a checkpoint of this stage to continue from; None to start at its beginning.

        Raises:
            InputError: the model's output is not [N, classes], or the data has labels beyond its classes.
            JobError: the loss or a weight became NaN or infinite. The last checkpoint is older than that.
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
                self._report(row)  # a kill may have come after the checkpoint of this epoch and before its log row
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
            if (step + 1) % _CHECK_EVERY == 0:
                due = time.monotonic() - self._saved > self.seconds
                self._check_finite(epoch, weights=due)
                if due:
                    self._save(epoch, step + 1)
            if self.progress is not None:
                self.progress(f"{self.stage.capitalize()} {epoch + 1}/{self.recipe.epochs}", step + 1, count)
        self._check_finite(epoch, weights=True)
        if self.regulariser is not None:
            self.regulariser.after_epoch(epoch + 1)
        row = self._row(epoch + 1, lr, time.monotonic() - began)
        self._totals.zero_()
        self._save(epoch + 1, 0, row)
        self._report(row)

    def _row(self, epoch: int, lr: float, seconds: float) -> dict[str, Any]:
        """The log row of an epoch, without the accuracy, which is measured after the checkpoint is written."""
        loss, right, samples = self._totals.tolist()
        samples = max(1.0, samples)
        extra = self.regulariser.report() if self.regulariser is not None else {}
        return {
            "stage": self.stage, "epoch": epoch, "lr": f"{lr:.6g}", "loss": f"{loss / samples:.6g}",
            "train_accuracy": f"{right / samples:.6g}", "seconds": f"{seconds:.3g}",
            "extra": " ".join(f"{k}={v:.6g}" for k, v in extra.items() if isinstance(v, float)),
        }  # fmt: skip

    def _report(self, row: Mapping[str, Any]) -> None:
        """Measure the accuracy if it is due, and add the epoch to the log."""
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

        low, high = int(labels.min()), int(labels.max())  # on the CPU: reading them from the device would wait for it
        inputs, labels = inputs.to(self._device), labels.to(self._device)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.recipe.precision)
        with torch.autocast(self._device.type, half, enabled=half is not None):
            logits = self._module(inputs)
        _check_logits(logits, low, high)
        # DistributedDataParallel averages the gradients over the processes; this factor makes that the mean over all
        # samples of the global batch, whose shares need not be equal
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
        """The loss without the regulariser's term, summed over the samples."""
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

    def _check_finite(self, epoch: int, *, weights: bool = False) -> None:
        """Add up the totals since the last check, over all processes, and stop if the loss is not finite.

        With ``weights``, check the weights too. That is done before a checkpoint: the last step may have broken a
        weight, and no loss has been computed with it yet.

        Raises:
            JobError: the loss or a weight is NaN or infinite.
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
            f"{broken} became NaN or infinite in {self.stage}, epoch {epoch + 1}" + (f"; {kept}" if kept else ""),
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
    """Check that the model gives logits [N, classes] and that the labels are among the classes."""
    shape = list(getattr(logits, "shape", [])) or type(logits).__name__
    if not isinstance(shape, list) or len(shape) != 2:
        raise InputError(f"the model's output is {shape}, but training needs logits [N, classes]")
    if low < 0 or high >= shape[1]:
        raise InputError(
            f"the data has labels {low}..{high}, the model has {shape[1]} classes",
            remedy="give the data that the model was made for",
        )


def evaluate(
    model: torch.nn.Module, batches: Batches, device: torch.device, processes: Processes | None = None
) -> float:
    """Accuracy, 0 to 1: the share of samples whose largest logit is that of their label.

    Args:
        model: a classifier with logits [N, classes]; it is left in evaluation mode.
        batches: the samples.
        device: the model's device.
        processes: the processes that share the samples.
    """
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
class _FunctionBatches:
    """`Batches` from a function that gives one epoch at each call."""

    batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]

    def __len__(self) -> int:
        return 1 << 62  # unknown, and only the progress display asks

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
    """Train the weights that masks keep, with cross-entropy, SGD and a cosine schedule.

    Args:
        model: a classifier with logits [N, classes]. It is changed in place and left in evaluation mode.
        masks: masks to hold, by parameter name; an empty mapping trains everything.
        batches: called once per epoch; gives pairs of inputs [N, ...] and labels [N].
        epochs: passes over the data.
        lr: first learning rate; the cosine ends at zero.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.

    Raises:
        InputError: a mask does not fit the model, the output is not [N, classes], or a label is beyond the classes.
        JobError: the loss or a weight became NaN or infinite.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 2)
        >>> data = [(torch.randn(8, 4), torch.arange(8) % 2)]
        >>> mask = np.array([[True, False, True, False], [True, True, False, False]])
        >>> fine_tune(model, {"weight": mask}, lambda: data, epochs=2)
        >>> (model.weight != 0).tolist() == mask.tolist()
        True
    """
    recipe = Recipe(epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay)
    Trainer(model, _FunctionBatches(batches), recipe, masks=masks).run()
