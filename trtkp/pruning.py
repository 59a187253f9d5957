"""``trtkp prune``: model file → masks, with or without training → a directory that ``trtkp build`` takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from glob import escape
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import trtkp
from trtkp.bundle import BundleWriter
from trtkp.bundle.manifest import FileRecord
from trtkp.bundle.pruned import Pruned, PrunedLayer, PrunedManifest
from trtkp.bundle.writer import check_replaceable
from trtkp.errors import InputError, TrtkpError
from trtkp.layer_table import matrix_names, named_graph, read_layers
from trtkp.prune.accounting import account
from trtkp.prune.index_set import IndexSet
from trtkp.prune.method import Masks, Method, index_set, prune_one_shot, select_layers
from trtkp.prune.nm import refined
from trtkp.prune.registry import make_method
from trtkp.prune.regulariser import Converting, Deployed, Trainable, can_regularise
from trtkp.prune.storage import save_index_sets
from trtkp.prune.train.recipe import STAGES, Training
from trtkp.prune.vskp_index import Listed
from trtkp.records import paper_counts, source_record, totals_record
from trtkp.shapes import Profile, make_profile, parse_shape_options, smallest_samples

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from trtkp.graph.layers import LayerTable
    from trtkp.model import SourceModel
    from trtkp.model.torch_backend import TorchBackend
    from trtkp.prune.conv_layer import ConvLayer
    from trtkp.prune.train.checkpoint import Checkpoint
    from trtkp.prune.train.data import Dataset, Parts
    from trtkp.prune.train.processes import Processes

__all__ = ["PruneOptions", "prune", "training_folder"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PruneOptions:
    """How to prune; every field is an option of ``trtkp prune``.

    Attributes:
        input_shape: shapes of a model whose file knows none.
        include: patterns of the layers to prune, instead of the method's default scope.
        skip: patterns of layers to leave dense.
        arch: ``package.module:factory`` of a state dict's network.
        trust_pickle: allow model files that are code.
        training: what is trained and how; without epochs nothing is.
        device: where to train, such as ``cuda``; without it a GPU where there is one.
        restart: forget the checkpoint of a training that was interrupted.
        test_every: epochs between two accuracies in the log; 0 for none.
    """

    input_shape: Sequence[str] = ()
    include: Sequence[str] = ()
    skip: Sequence[str] = ()
    arch: str | None = None
    trust_pickle: bool = False
    training: Training = field(default_factory=Training)
    device: str | None = None
    restart: bool = False
    test_every: int = 1

    def __post_init__(self) -> None:
        if self.test_every < 0:
            raise InputError(
                f"--test-every {self.test_every}: a number of epochs", remedy="give 1 or more, 0 for never"
            )


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
        data: what to train and measure accuracy with; see `trtkp.prune.train.data.load_parts`.
        progress: called as the work goes on.
        settings: of the method.

    Raises:
        InputError: bad options, model or data; nothing was written.
        JobError: the training failed; an older directory is untouched, and the last good checkpoint is kept.
    """
    from trtkp.prune.train.processes import joined

    options = options or PruneOptions()
    chosen = make_method(method, **settings) if isinstance(method, str) else method
    _check_stages(chosen, options.training)
    target = Path(output)
    check_replaceable(target)
    trained = _epochs(options.training)
    if trained and data is None:
        raise InputError(f"{trained} epochs of training need data", remedy="give --data")
    run = _Run(Path(model), target, chosen, options, None if data is None else Path(data), progress)
    with joined() if trained else nullcontext():
        run.load()
        run.train()
        if run.first:
            with BundleWriter(target) as writer:
                run.write(writer.staging)
                manifest = writer.publish(run.manifest)
            run.forget()
            run.published = manifest
        run.wait()
    return Pruned(target, run.published if run.first else None)


def training_folder(output: Path) -> Path:
    """Where a training keeps its checkpoint and its log: beside the output, hidden."""
    return output.absolute().with_name(f".{output.absolute().name}.training")


def _check_stages(method: Method, training: Training) -> None:
    if not (isinstance(method, Converting) and isinstance(method, Trainable)):
        if training.prepare.epochs:
            raise InputError(f"a stage prepare means nothing to method {method.name}", remedy="leave it out")
    elif not training.regularise.epochs:
        raise InputError(f"--method {method.name} learns its patterns in training", remedy="give --data and --epochs")


def _masks_of(stored: Mapping[str, torch.Tensor]) -> Masks:
    """Masks as a checkpoint holds them."""
    return {name: mask.numpy().astype(bool) for name, mask in stored.items()}


def _epochs(training: Training) -> int:
    return training.prepare.epochs + training.regularise.epochs + training.finetune.epochs


@dataclass
class _Run:
    """One pruning, step by step; each step leaves what the next one needs."""

    path: Path
    output: Path
    method: Method
    options: PruneOptions
    data: Path | None
    progress: Progress | None

    source: SourceModel = field(init=False)
    graph: ir.Model = field(init=False)
    table: LayerTable = field(init=False)
    layers: list[ConvLayer] = field(init=False)
    weights: dict[str, npt.NDArray[Any]] = field(init=False)
    masks: Masks = field(default_factory=dict)
    lists: Masks = field(default_factory=dict)
    matrices: Masks = field(default_factory=dict)
    left_dense: dict[str, str] = field(init=False)
    profile: Profile = field(init=False)
    made: LayerTable = field(init=False)
    deployed: Deployed | None = None
    parts: Parts | None = None
    module: torch.nn.Module | None = None
    processes: Processes | None = None
    published: PrunedManifest = field(init=False)
    accuracy: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.processes is None or self.processes.first

    def wait(self) -> None:
        """For the process that writes."""
        if self.processes is not None:
            self.processes.wait()

    def load(self) -> None:
        """The model, its layers and the data."""
        from trtkp.model import load_model

        options = self.options
        self.source = load_model(
            self.path,
            arch=options.arch,
            input_shape=list(options.input_shape) or None,
            trust_pickle=options.trust_pickle,
        )
        self.warnings += self.source.warnings
        if isinstance(self.method, Converting):
            self._torch_backend().dynamic_shapes()  # what is trained is exported in the end
        specs = self.source.inputs
        self.profile = profile = make_profile(
            specs, {}, parse_shape_options(list(options.input_shape), specs, "--input-shape"), {}
        )
        if self.data is not None:
            self._load_data(profile)
        try:
            self.graph = named_graph(self.source)
            self.table, self.weights = read_layers(self.graph, self.source, profile)
            if isinstance(self.method, Listed):
                self.method.check(self.table.layers)
            chosen, self.left_dense = select_layers(self.method, self.table.layers, options.include, options.skip)
        except TrtkpError as error:
            raise error if error.file is not None else error.in_file(self.path) from error
        self.layers = list({layer.name: layer for layer in chosen}.values())
        if isinstance(self.method, Converting) and not self.layers:
            raise InputError(f"method {self.method.name} finds no layer to prune", file=self.path)

    def _load_data(self, profile: Profile) -> None:
        from trtkp.prune.train.data import load_parts

        assert self.data is not None
        options, specs = self.options, self.source.inputs
        if len(specs) != 1:
            raise InputError(f"has {len(specs)} inputs, training needs a model of one", file=self.path)
        if _epochs(options.training) and isinstance(specs[0].shape[0], int):
            raise InputError(
                f"takes batches of {specs[0].shape[0]} only",
                file=self.path,
                remedy="export it with torch.export.Dim for the batch",
            )
        shape = next(iter(profile.values())).opt[1:]
        self.parts = load_parts(self.data, shape, options.training.data, options.training.seed)
        self.module = self.source.module()

    def train(self) -> None:
        """Every stage, from the checkpoint of an interrupted training where there is one; masks and accuracies."""
        if self.parts is None or self.module is None:
            if isinstance(self.method, Converting):
                self._convert(self.method)
            else:
                self._take(*self._one_shot(self.weights))
            return
        start = self._begin()
        if "dense" not in self.accuracy:
            self.accuracy["dense"] = self._measure()
        if isinstance(self.method, Converting):
            self._convert(self.method)
            self.module.to(self._device)
        if start is not None and start.stage == "finetune":
            self._take(*(_masks_of(start.part(part)) for part in ("mask", "list")))
            self._fine_tune(start)
        else:
            self._towards_masks(start)
            self._fine_tune(None)
        self.accuracy["pruned"] = self._measure()

    def _begin(self) -> Checkpoint | None:
        """The module on its device, and the checkpoint to go on from."""
        import torch

        from trtkp.prune.train.checkpoint import load_checkpoint
        from trtkp.prune.train.processes import Processes

        assert self.module is not None
        self.processes = Processes()
        self._device = torch.device(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.module.to(self._device)
        if self.options.restart and self.first:
            self.forget()
        self.wait()
        start = load_checkpoint(self._checkpoint, self._fingerprint())
        where = (STAGES.index(start.stage), start.epoch, start.step) if start is not None else (-1, 0, 0)
        if not self.processes.agree(where, self._device):
            raise InputError(
                "is not the same for every process",
                file=self._checkpoint,
                remedy="put -o where all nodes see it, or give --restart to begin anew",
            )
        notes = start.numbers.get("notes", {}) if start is not None else {}
        self.accuracy, self.report = notes.get("accuracy", {}), notes.get("report", {})
        return start

    def _towards_masks(self, start: Checkpoint | None) -> None:
        """The stages before the masks are there, and the masks."""
        from trtkp.prune.regulariser import layer_weights

        assert self.module is not None
        training = self.options.training
        if training.prepare.epochs and (start is None or start.stage == "prepare"):
            self._stage("prepare", start)
            start = None
        if can_regularise(self.method) and training.regularise.epochs:
            self._take(*self._regularised(start))
        elif not isinstance(self.method, Converting):
            self._take(*self._one_shot(layer_weights(self.module, self.layers)))

    def _fine_tune(self, start: Checkpoint | None) -> None:
        """The last stage, with the masks held."""
        import torch

        from trtkp.prune.masked import apply_masks
        from trtkp.prune.regulariser import layer_weights

        assert self.module is not None
        held = self.masks | self.matrices
        apply_masks(self.module, held)
        if "one-shot" not in self.accuracy:
            self.accuracy["one-shot"] = self._measure()
        if not self.options.training.finetune.epochs:
            return
        keep = {
            f"{part}.{name}": torch.from_numpy(mask.astype(np.uint8))
            for part, masks in (("mask", self.masks), ("list", self.lists))
            for name, mask in masks.items()
        }
        repairs, before = getattr(self.method, "reactivate", False), {}
        if repairs and start is not None:
            before = {name: weight.numpy() for name, weight in start.part("before").items()}
        elif repairs:
            before = layer_weights(self.module, self.layers)
        keep |= {f"before.{name}": torch.from_numpy(weight) for name, weight in before.items()}
        self._stage("finetune", start, masks=held, keep=keep)
        if repairs:
            self._reactivate(before)

    def _one_shot(self, weights: Mapping[str, npt.NDArray[Any]]) -> tuple[Masks, Masks]:
        """Masks, and the lists of those with 2:4 inside."""
        pruning = prune_one_shot(self.method, self.layers, weights, [escape(layer.name) for layer in self.layers])
        return pruning.masks, pruning.lists

    def _convert(self, method: Converting) -> None:
        """The net of the method in place of the model's."""
        backend = self._torch_backend()
        seed = self.options.training.seed
        try:
            self.module = method.convert(backend.graph_module(), self.layers, backend.example(), seed)
        except InputError as error:
            raise error if error.file is not None else error.in_file(self.path) from None

    def _regularised(self, start: Checkpoint | None) -> tuple[Masks, Masks]:
        from trtkp.prune.regulariser import layer_weights

        assert isinstance(self.method, Trainable)
        assert self.module is not None
        regulariser = self.method.regulariser(self.module, self.layers)
        self._stage("regularise", start, regulariser=regulariser)
        self.report = regulariser.report()
        masks, lists = regulariser.masks(), {}
        regulariser.finish()
        if getattr(self.method, "nm", None) is not None:
            lists, masks = masks, refined(masks, layer_weights(self.module, self.layers), self.layers)
        if getattr(self.method, "retrain", False):
            from trtkp.prune.train.initialise import initialise

            initialise(self.module, self.options.training.seed)
        return masks, lists

    def _take(self, masks: Masks, lists: Masks) -> None:
        """Masks that remove something, each of which leaves something."""
        converts = isinstance(self.method, Converting)
        if converts and not can_regularise(self.method):
            return  # the net that it made has none
        for name, mask in masks.items():
            if not mask.any():
                raise InputError(
                    f"{self.method.name} would remove all filters of it",
                    file=self.path,
                    layer=name,
                    remedy="prune less, or leave the layer out with --skip",
                )
        self.masks = {name: mask for name, mask in masks.items() if not mask.all()}
        self.lists = {name: lists[name] for name in self.masks if name in lists}
        if getattr(self.method, "fully_connected", False):
            self._take_matrices()
        for layer in self.layers:
            if layer.name not in self.masks and not converts:  # what was converted is not left as it was
                self.left_dense[layer.name] = "the method removes nothing from it"
        if not self.masks:
            self.warnings.append(f"method {self.method.name} pruned no layer")

    def _take_matrices(self) -> None:
        """Masks of the fully connected layers, by V-SKP's rule."""
        from trtkp.prune.vskp import mask_of_matrix

        weights = self.source.parameters()
        ratio = self.method.settings()["ratio"]
        names = [name for name in matrix_names(self.graph) if name in weights]
        if self.source.format != "onnx":  # nor buffers
            module = self.module or self.source.module()
            names = [name for name in names if name in dict(module.named_parameters(remove_duplicate=False))]
        self.matrices = {name: mask_of_matrix(weights[name], ratio) for name in names}
        kept = {name: int(mask.sum()) for name, mask in self.matrices.items()}
        self.report["fully_connected"] = {name: [count, weights[name].size] for name, count in kept.items()}

    def _reactivate(self, before: Mapping[str, npt.NDArray[Any]]) -> None:
        """Let layers read the filters before them that the fine-tune left unmoved."""
        import torch

        from trtkp.graph.chains import next_convolutions
        from trtkp.prune.regulariser import layer_parameters, layer_weights
        from trtkp.prune.vskp import reactivate, unmoved_filters

        assert self.module is not None
        tuned, parameters = layer_weights(self.module, self.layers), layer_parameters(self.module, self.layers)
        restored = {}
        for name, following in next_convolutions(self.graph).items():
            if name not in self.masks or following not in self.masks:
                continue
            channels = unmoved_filters(before[name], tuned[name])
            mask, weight = reactivate(channels, self.masks[following], self.weights[following], tuned[following])
            if changed := int((mask & ~self.masks[following])[:, :, 0, 0].sum()):
                restored[following] = changed
                self.masks[following] = mask
                with torch.no_grad():
                    parameters[following].copy_(torch.from_numpy(weight))
        self.report["reactivated"] = restored

    def _stage(self, name: str, start: Checkpoint | None, **options: Any) -> None:
        from trtkp.prune.train.log import TrainingLog
        from trtkp.prune.train.trainer import Trainer

        assert self.parts is not None
        assert self.module is not None
        assert self.processes is not None
        training = self.options.training
        recipe = getattr(training, name)
        began = time.perf_counter()
        log = TrainingLog(self._checkpoint.parent, tensorboard=self.first) if self.first else None
        if log is not None:
            log.forget(name, start.epoch + 1 if start is not None else 1)
        teacher = None
        if recipe.distil:
            from trtkp.prune.train.modes import set_training

            teacher = self.source.module().to(self._device)
            set_training(teacher, False)
        trainer = Trainer(
            self.module,
            self._loader(self.parts.train, recipe.batch, augment=True),
            recipe,
            stage=name,
            teacher=teacher,
            seed=training.seed,
            device=self._device,
            test=lambda _: self._measure(),
            test_every=self.options.test_every,
            checkpoint=self._checkpoint,
            fingerprint=self._fingerprint(),
            notes={"accuracy": self.accuracy, "report": self.report},
            log=log,
            progress=self.progress,
            processes=self.processes,
            **options,
        )
        try:
            trainer.run(start)
        finally:
            if log is not None:
                log.close()
        self.seconds[name] = round(time.perf_counter() - began, 3)

    def _loader(self, data: Dataset, batch: int, *, augment: bool) -> Any:
        from trtkp.prune.train.data import Loader

        training = self.options.training
        assert self.processes is not None
        return Loader(
            data, training.data, batch=batch, seed=training.seed, processes=self.processes, augment=augment
        )  # fmt: skip

    def _measure(self) -> float:
        from trtkp.prune.train.trainer import evaluate

        assert self.parts is not None
        assert self.module is not None
        batches = self._loader(self.parts.test, self.options.training.finetune.batch, augment=False)
        return evaluate(self.module, batches, self._device, self.processes)

    @property
    def _checkpoint(self) -> Path:
        return training_folder(self.output) / "checkpoint.safetensors"

    def _fingerprint(self) -> str:
        """Everything that the weights depend on."""
        assert self.parts is not None
        options = self.options
        known = {
            "source": self.source.sha256,
            "method": [self.method.name, self.method.settings()],
            "layers": [layer.name for layer in self.layers],
            "training": options.training.as_dict(),
            "data": self.parts.digest(),
        }
        return sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()

    def write(self, staging: Path) -> None:
        """Model, index sets and log."""
        if isinstance(self.method, Converting):
            self._write_converted(staging, self.method)
        elif self.source.format == "onnx":
            self._write_onnx(staging)
        else:
            self._write_weights(staging)
        save_index_sets(staging / "index_sets.safetensors", self.index_sets)
        log = training_folder(self.output) / "log.csv"
        if log.exists():
            (staging / log.name).write_bytes(log.read_bytes())

    @property
    def index_sets(self) -> dict[str, IndexSet]:
        """Of every pruned weight."""
        groups = {layer.name: layer.groups for layer in self.layers}
        return {name: index_set(mask, self.lists.get(name), groups[name]) for name, mask in sorted(self.masks.items())}

    def _torch_backend(self) -> TorchBackend:
        from trtkp.model.torch_backend import TorchBackend

        if not isinstance(self.source.backend, TorchBackend):
            raise InputError(
                f"method {self.method.name} needs the model from PyTorch",
                file=self.path,
                remedy="give what torch.export.save wrote",
            )
        return self.source.backend

    def _write_onnx(self, staging: Path) -> None:
        import onnx_ir as ir

        from trtkp.graph.rewrite import apply_masks

        apply_masks(self.graph, self.masks | self.matrices)
        self.model_file = "model.onnx"
        ir.save(self.graph, staging / self.model_file)

    def _write_weights(self, staging: Path) -> None:
        from trtkp.prune.masked import apply_masks

        module = self.module
        if module is None:
            module = self.source.module()
            apply_masks(module, self.masks | self.matrices)
        self.model_file = "model.pt2"
        self._torch_backend().save(staging / self.model_file, module.state_dict())

    def _write_converted(self, staging: Path, method: Converting) -> None:
        """The net that the method made, as it is deployed."""
        from trtkp.graph.layers import conv_layers
        from trtkp.model import load_model
        from trtkp.prune.train.modes import set_training

        assert self.module is not None
        set_training(self.module.cpu(), False)
        self.deployed = method.deployed(self.module, self.layers, self.table.macs)
        self.masks = self.deployed.masks
        self.report |= self.deployed.report
        self.model_file = "model.pt2"
        self._torch_backend().save_other(staging / self.model_file, self.module)
        written = load_model(staging / self.model_file)
        self.made = conv_layers(written.graph(), smallest_samples(written.inputs, self.profile))

    def manifest(self, files: dict[str, FileRecord]) -> PrunedManifest:
        """What was done."""
        index_sets = self.index_sets
        accounting = account(self.table.layers, self.table.params, self.table.macs, index_sets)
        counter = getattr(self.method, "paper_index_bytes", None)
        paper = {name: counter(index) for name, index in index_sets.items()} if counter is not None else {}
        costs = {cost.name: cost for cost in accounting.layers}
        totals, retained = (
            totals_record(accounting, paper, paper_counts(self.method.name, self.source, self.profile, accounting)),
            {name: cost.params.retained for name, cost in costs.items()},
        )
        if self.deployed is not None:
            totals = totals.model_copy(update={"retained_params": self.made.params, "retained_macs": self.made.macs})
            retained = self.deployed.params
        options = self.options
        trained = self.parts is not None and _epochs(options.training) > 0
        return PrunedManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            trtkp=trtkp.__version__,
            source=source_record(self.source, self.path, self.output, options.arch),
            method=self.method.name,
            settings=self.method.settings(),
            include=list(options.include),
            skip=list(options.skip),
            model=self.model_file,
            layers=[
                PrunedLayer(
                    name=name,
                    kind=index.kind.value,
                    filter_groups=index.filter_groups,
                    density=index.density,
                    retained_params=retained[name],
                    index_bytes=index.nbytes,
                    paper_index_bytes=paper.get(name),
                )
                for name, index in index_sets.items()
            ],
            left_dense=self.left_dense,
            totals=totals,
            data=self.parts.digest() if self.parts is not None else None,
            training=options.training.as_dict() if trained else None,
            report=self.report,
            accuracy=self.accuracy or None,
            seconds=self.seconds,
            warnings=self.warnings,
            files=files,
        )

    def forget(self) -> None:
        """Remove what the training kept beside the output."""
        import shutil

        shutil.rmtree(training_folder(self.output), ignore_errors=True)


def with_epochs(
    training: Training, method: Method, *, epochs: int | None, regularise: int | None, **changes: Any
) -> Training:
    """A recipe with the command line's numbers: ``changes`` go into every stage.

    Without a number of its own, and where the recipe has none, the stage towards the masks is as long as the fine-tune,
    and so is the one before it of a method that has one.
    """
    training = training.with_stage("finetune", epochs=epochs, **changes)
    if isinstance(method, Converting) and can_regularise(method):
        first = epochs if epochs is not None and not training.prepare.epochs else None
        training = training.with_stage("prepare", epochs=first, **changes)
    if not can_regularise(method):
        if regularise:
            raise InputError(f"--regularise-epochs means nothing to method {method.name}", remedy="leave it out")
        return replace(training, regularise=replace(training.regularise, epochs=0))
    if regularise is None and epochs is not None and not training.regularise.epochs:
        regularise = epochs
    return training.with_stage("regularise", epochs=regularise, **changes)
