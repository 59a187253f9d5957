"""The main line: model file → layer table → masks → packed graph → plan → engine → bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkp.bundle import Bundle, BundleWriter, Manifest
from trtkp.bundle.manifest import FileRecord, PlanRecord
from trtkp.bundle.pruned import is_pruned, load_pruned
from trtkp.bundle.records import libraries, source_record, tensor_record, totals_record
from trtkp.bundle.writer import check_replaceable
from trtkp.engine import Backend, BuildRequest, BuildResult, choose_backend
from trtkp.engine.options import TrtOptions
from trtkp.errors import InputError, JobError, TrtkpError
from trtkp.index.accounting import account
from trtkp.index.index_set import IndexSet
from trtkp.index.storage import save_index_sets
from trtkp.model.layers import named_graph, read_layers
from trtkp.pipeline.options import BuildOptions, check_buildable
from trtkp.pipeline.quantised import (
    check_quantised,
    quantisation_record,
    read_samples,
    save_quantised,
    state_file,
)
from trtkp.pipeline.records import layer_records, paper_counts, plan_record, tensorrt_record
from trtkp.pruning.method import Method
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.one_shot import prune_one_shot
from trtkp.shapes import Profile, profile_from_options
from trtkp.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import onnx_ir as ir

    from trtkp.bundle.calibration import Calibration
    from trtkp.calib.quantise import Quantised
    from trtkp.data.labelled import LabelledData
    from trtkp.data.samples import Samples
    from trtkp.graph.layers import LayerTable
    from trtkp.model import SourceModel
    from trtkp.plan.planner import Plan
    from trtkp.plan.target import EngineTarget

__all__ = ["Line", "build"]

#: Called with a phase, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]


def build(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    method: str | Method | None = None,
    options: BuildOptions | None = None,
    data: LabelledData | str | PathLike[str] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Bundle:
    """Prune a model one-shot and build a bundle from it.

    Args:
        model: model file, in any form that `trtkp.model.load_model` takes, or a directory that ``trtkp prune`` wrote.
        output: directory of the bundle; an older bundle there is replaced once the new one is whole.
        method: a method, or its name with ``settings`` (``n=4``, ``share="per-layer"``); KEP without it. What is
            pruned already has one.
        options: backend, precision, shapes and so on.
        data: adds the accuracy before and after; for int8 and fp8 what to calibrate with. A path is read as
            `trtkp.data.samples.load_samples` does.
        progress: called as phases go on.
        settings: of the method.

    Raises:
        InputError: bad options or a bad model; nothing was written.
        JobError: the engine could not be built or checked; nothing was written, an older bundle is untouched.
    """
    options = options or BuildOptions()
    source = Path(model)
    if is_pruned(source):
        source, chosen = _stored(source, method, settings)
    else:
        method = "kep" if method is None else method
        chosen = make_method(method, **settings) if isinstance(method, str) else method
    chosen.check_one_shot()
    backend = choose_backend(options.backend)
    check_buildable(backend, options, has_data=data is not None)
    check_replaceable(Path(output))
    line = Line(source, Path(output), chosen, backend, options, data, progress)
    with BundleWriter(Path(output)) as writer:
        line.run(writer.staging)
        line.manifest = writer.publish(line.make_manifest)
    return Bundle(Path(output), line.manifest)


def _stored(path: Path, method: str | Method | None, settings: Mapping[str, Any]) -> tuple[Path, Method]:
    """The model file of a pruned directory, and its index sets as a method."""
    given = [f"--{key.replace('_', '-')}" for key, value in settings.items() if value is not None]
    if method is not None or given:
        what = given[0] if given else "--method"
        raise InputError(f"{what} means nothing to a model that is pruned already", file=path, remedy="leave it out")
    pruned = load_pruned(path)
    return pruned.model, pruned.method()


@dataclass
class Line:
    """One build, step by step; each step leaves what the next one needs.

    `trtkp.budget` takes the same steps with other methods, and writes nothing.
    """

    path: Path
    output: Path
    method: Method
    backend: Backend
    options: BuildOptions
    data: LabelledData | str | PathLike[str] | None
    progress: Progress | None

    staging: Path = field(init=False)
    samples: Samples | None = None
    given: Calibration | None = None
    quantised: Quantised | None = None
    source: SourceModel = field(init=False)
    profile: Profile = field(init=False)
    table: LayerTable = field(init=False)
    index_sets: dict[str, IndexSet] = field(init=False)
    left_dense: dict[str, str] = field(init=False)
    ops: dict[str, str] = field(init=False)
    plan: Plan = field(init=False)
    planned: PlanRecord = field(init=False)
    request: BuildRequest = field(init=False)
    result: BuildResult = field(init=False)
    accuracy: dict[str, float] | None = None
    manifest: Manifest = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def run(self, staging: Path) -> None:
        """Every step, writing into ``staging``."""
        self.staging = staging
        with self._phase("load"):
            self.load()
        with self._phase("prune"):
            masked = self.prune()
        with self._phase("rewrite"):
            dense, packed = self.rewrite(masked)
            del masked
            save_index_sets(staging / "index_sets.safetensors", self.index_sets)
        with self._phase("plan"):
            engine_graph = self.plan_forms(dense)
        if self.options.kind is not None:
            with self._phase("calibrate"):
                engine_graph = self._quantise(packed, engine_graph)
                assert self.quantised is not None
                save_quantised(self.quantised, staging)
        with self._phase("check"):
            _save(packed, staging / "model.onnx")
            _save(engine_graph, staging / "engine.onnx")
            self._check(packed, engine_graph)
            plugin_nodes = sum(node.domain == "trtkp" for node in engine_graph.graph)
            del dense, packed, engine_graph
        with self._phase("build"):
            self._build(staging, plugin_nodes)
            self._check_engine()
        if self.samples is not None and self.samples.labels is not None:
            with self._phase("accuracy"):
                self._measure_accuracy(staging, self.samples.labelled)

    def load(self) -> None:
        """The model, its profile, samples and a given calibration."""
        from trtkp.model import load_model

        options = self.options
        self.source = load_model(
            self.path,
            arch=options.arch,
            input_shape=list(options.input_shape) or None,
            trust_pickle=options.trust_pickle,
        )
        self.warnings += self.source.warnings
        specs = self.source.inputs
        self.profile = profile_from_options(
            specs, options.min, options.opt, options.max, input_shape=options.input_shape
        )
        if options.calibration_file is not None:
            from trtkp.bundle.calibration import load_calibration

            self.given = load_calibration(options.calibration_file)
        if self.data is not None:
            self.samples = read_samples(self.data, self.profile, options.calibration)

    def source_graph(self) -> ir.Model:
        """A copy of the source graph, every node with a name of its own."""
        return named_graph(self.source)

    def survey(self, graph: ir.Model) -> dict[str, np.ndarray]:
        """The layer table of the source graph; gives the weights of its layers."""
        self.table, weights = read_layers(graph, self.source, self.profile, self.options.floating)
        return weights

    def prune(self) -> ir.Model:
        """The source graph with pruned weights at zero."""
        from trtkp.graph.passes.pack import apply_masks

        graph = self.source_graph()
        weights = self.survey(graph)
        pruning = prune_one_shot(self.method, self.table.layers, weights, self.options.include, self.options.skip)
        groups = {layer.name: layer.groups for layer in self.table.layers}
        self.index_sets = pruning.index_sets(groups)
        self.left_dense = pruning.left_dense
        self.warnings += self.method.notes(pruned=bool(self.index_sets), folded=self._batch_norm_folded(graph))
        apply_masks(graph, {name: index.mask() for name, index in self.index_sets.items()})
        return graph

    def _batch_norm_folded(self, graph: ir.Model) -> bool:
        kinds = {node.op_type for node in graph.graph}
        return self.source.format == "onnx" and "BatchNormalization" not in kinds

    def rewrite(self, graph: ir.Model) -> tuple[ir.Model, ir.Model]:
        """The masked graph with batch normalisation folded, at its precision; and the packed one, ``model.onnx``."""
        from trtkp.graph.passes.batch_norm import fold_batch_norm
        from trtkp.graph.passes.dynamic import fold_dynamic, fuse_dynamic
        from trtkp.graph.passes.pack import pack_convolutions
        from trtkp.graph.passes.precision import to_float16

        fold_batch_norm(graph)
        fold_dynamic(graph)
        if self.options.precision == "fp16":
            graph = to_float16(graph, keep_io=self.options.keep_io)
        packed = graph.clone()
        fuse_dynamic(packed)
        nodes = pack_convolutions(packed, self.index_sets, self._input_sizes)
        self.ops = {str(node.name): node.op_type for node in nodes}
        unpacked = {layer.node for layer in self.table.layers if layer.name in self.index_sets} - set(self.ops)
        if unpacked:  # a promise of the format: a node for every index set
            raise JobError(f"no packed operator was made for {', '.join(sorted(unpacked))}", file=self.path)
        return graph, packed

    @property
    def _input_sizes(self) -> dict[str, tuple[int, int]]:
        return {layer.node: layer.input_size for layer in self.table.layers}

    def plan_forms(self, dense: ir.Model) -> ir.Model:
        """``engine.onnx``: without dead parts, each layer in its form of standard operators, or packed for a plugin."""
        from trtkp.pipeline.engine_graph import make_engine_graph
        from trtkp.plan.cache import TimingCache

        lowering = self.options.lowering
        only: str | dict[str, str] | None = None if lowering == "auto" else lowering
        if self.given is not None and only is None:  # its tensors are those of the forms that it was made for
            only = {name: choice.lowering for name, choice in self.given.layers.items() if choice.lowering}
        cache = TimingCache() if self.options.timing_cache else TimingCache.in_memory()
        runs_here = self.backend.runs_on_cpu or self.target is not None
        made = make_engine_graph(
            dense,
            self.index_sets,
            self.table,
            {name: shapes.opt for name, shapes in self.profile.items()},
            measure=self.options.measure and runs_here,
            threads=self.options.threads,
            only=only,
            cache=cache,
            target=self.target,
            progress=self.progress,
        )
        self.plan, self.planned = made.plan, plan_record(made, forced=lowering != "auto", threads=self.options.threads)
        self.warnings += [*cache.problems, *made.notes]
        all_dense = self.index_sets and set(self.plan.choices.values()) == {"dense"}
        if all_dense and only is None and not self.plan.notes:
            self.warnings.append(self._why_all_dense())
        return made.model

    @cached_property
    def target(self) -> EngineTarget | None:
        """The GPU that a TensorRT engine is planned for; None for other backends, or without a GPU."""
        if not self.backend.takes_plugins:
            return None
        from trtkp.plan.target import EngineTarget

        options = self.options
        # plugins compute in floating point: of a layer in 8 bits they would be the slow form
        plugins = options.plugins and options.kind is None
        return EngineTarget.here(
            self.backend, precision=options.floating, plugins=plugins, level=options.level, trt=self._tensorrt
        )

    @property
    def _tensorrt(self) -> TrtOptions:
        """The options with the folder of the tactics' times."""
        return replace(self.options.tensorrt, timing_cache=self.options.tensorrt.timing_cache or self._tactics)

    @property
    def _tactics(self) -> Path | None:
        from trtkp.plan.cache import TimingCache

        return TimingCache().directory if self.options.timing_cache else None

    def _why_all_dense(self) -> str:
        text = "no pruned layer is faster packed than dense here: the lists are too fine or keep too much"
        coarser = self.method.coarser()
        return text if coarser is None else f"{text}; {coarser}"

    def _quantise(self, packed: ir.Model, planned: ir.Model) -> ir.Model:
        """The planned graph with Q/DQ pairs; the packed one gets its scales."""
        from trtkp.calib.quantise import quantise

        assert self.options.kind is not None
        self.quantised = quantise(
            packed,
            planned,
            self.profile,
            self.options.calibration,
            kind=self.options.kind,
            backend=self.backend,
            samples=self.samples,
            calibration=self.given,
            keep_io=self.options.keep_io,
            lowerings={plan.name: plan.choice for plan in self.plan.layers},
            threads=self.options.threads,
            state=state_file(self.output),
            progress=self.progress,
        )
        self.warnings += self.quantised.notes
        return self.quantised.engine

    def _check(self, packed: ir.Model, engine_graph: ir.Model) -> None:
        """Hold ``engine.onnx`` against the dense masked net before anything is published."""
        from trtkp.verification.bundle import compare_graphs, dense_graph
        from trtkp.verification.ranges import FLOAT16_MAX, beyond_float16

        reference = dense_graph(packed)
        if self.quantised is not None:
            check_quantised(self.quantised, engine_graph, reference, self.profile, self.options.precision, self.path)
            return

        shapes = {name: shapes.min for name, shapes in self.profile.items()}
        check = compare_graphs("engine.onnx", engine_graph, reference, shapes, self.options.precision)
        if check.status == "failed":
            raise JobError(f"the planned graph differs from the dense one: {check.summary}", file=self.path)
        if self.options.precision == "fp16" and (found := beyond_float16(engine_graph, shapes)) is not None:
            self.warnings.append(
                f"activation {found[0]} reaches {found[1]:.3g} on random inputs, fp16 ends at {FLOAT16_MAX:.0f}: "
                "--precision fp32 is safe"
            )

    def _build(self, staging: Path, plugin_nodes: int) -> None:
        library = self.target.library if self.target is not None else None
        self.request = BuildRequest(
            onnx=staging / "engine.onnx",
            output=staging,
            profile=self.profile,
            precision=self.options.floating if self.quantised is None else self.quantised.calibration.fallback,  # type: ignore[arg-type]  # checked at the start
            targets=self.backend.engine_targets(self.options.precision, self.options.targets),
            threads=self.options.threads,
            optimization_level=self.options.level,
            plugins=library.path if library is not None and plugin_nodes else None,
            plugin_nodes=plugin_nodes,
            trt=self._tensorrt,
        )
        self.result = self.backend.build(self.request, self.progress)
        self.warnings += self.result.warnings

    def _check_engine(self) -> None:
        from trtkp.verification.bundle import check_built

        fused = self.quantised is None or self.quantised.calibration.fuse_qdq
        check_built(self.backend, self.request, self.result, self.options.precision, fuse_qdq=fused)

    def _measure_accuracy(self, staging: Path, data: LabelledData | None) -> None:
        from trtkp.engine.accuracy import accuracy
        from trtkp.engine.onnxruntime import OrtRunner

        assert data is not None
        fused = self.quantised is None or self.quantised.calibration.fuse_qdq
        dense = staging / ".dense.onnx"
        _save(self.source.graph(), dense)
        found = {}
        try:
            for name, file in (("dense", dense), ("pruned", staging / "engine.onnx")):
                with OrtRunner(file, threads=self.options.threads, fuse_qdq=fused) as runner:
                    found[name] = accuracy(runner, data, self.profile)
        finally:
            for file in staging.glob(".dense.onnx*"):
                file.unlink()
        self.accuracy = found

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        if self.progress is not None:
            self.progress(name.capitalize(), 0, 1)
        start = time.perf_counter()
        try:
            yield
        except TrtkpError as error:
            # of an option the message says which; the files of a build that failed are gone
            unnamed = error.file is None and not error.message.startswith("--")
            staged = error.file is not None and Path(error.file).is_relative_to(self.staging)
            if unnamed or staged:
                raise error.in_file(self.path) from error
            raise
        self.seconds[name] = round(time.perf_counter() - start, 3)
        if self.progress is not None:
            self.progress(name.capitalize(), 1, 1)

    def make_manifest(self, files: dict[str, FileRecord]) -> Manifest:
        """The manifest of what was done."""
        options = self.options
        table = self.table
        matrices = table.matrices_kept(self.method.stored_matrices())
        accounting = account(table.layers, table.params, table.macs, self.index_sets, matrices)
        paper = self.method.paper_bytes_by_layer(self.index_sets)
        halved = options.precision == "fp16" and not options.keep_io
        return Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            trtkp=__version__,
            source=source_record(self.source, self.path, self.output, options.arch),
            method=self.method.name,
            settings=self.method.settings(),
            include=list(options.include),
            skip=list(options.skip),
            backend=self.backend.name,  # type: ignore[arg-type]  # the registry's names are the manifest's
            precision=options.precision,  # type: ignore[arg-type]  # checked at the start
            keep_io=options.keep_io,
            targets=list(self.result.targets),
            inputs=[tensor_record(spec, halved=halved) for spec in self.source.inputs],
            outputs=[tensor_record(spec, halved=halved) for spec in self.source.outputs],
            profile={
                name: {"min": list(shapes.min), "opt": list(shapes.opt), "max": list(shapes.max)}
                for name, shapes in self.profile.items()
            },
            layers=layer_records(
                self.table,
                accounting,
                self.index_sets,
                self.plan,
                ops=self.ops,
                paper=paper,
                left_dense=self.left_dense,
            ),
            left_out=self.table.left_out,
            totals=totals_record(accounting, paper, paper_counts(self.method, self.source, self.profile, accounting)),
            plan=self.planned,
            quantisation=quantisation_record(self.quantised) if self.quantised is not None else None,
            tensorrt=tensorrt_record(self.request, self.result) if self.backend.compiles else None,
            accuracy=self.accuracy,
            libraries=libraries(self.backend.name, self.result.version),
            seconds=self.seconds,
            warnings=self.warnings,
            files=files,
        )


def _save(model: ir.Model, path: Path) -> None:
    """One file, or weights beside it where a protobuf message would be too large."""
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > 1 << 30 else None)
