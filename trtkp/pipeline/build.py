"""A build: model file → layer table → masks → packed graph → plan → engine → bundle."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkp.bundle import Bundle, BundleWriter, Manifest
from trtkp.bundle.pruned import is_pruned, load_pruned
from trtkp.bundle.reader import read_record
from trtkp.bundle.writer import check_replaceable
from trtkp.engine import choose_backend
from trtkp.errors import InputError
from trtkp.index.storage import save_index_sets
from trtkp.pipeline.draft import Draft, Graphs, draft_of_model
from trtkp.pipeline.finish import (
    Done,
    build_engine,
    check_graphs,
    complete,
    measure_accuracy,
    quantise_graphs,
    write_graphs,
)
from trtkp.pipeline.job import Job, Phases, Progress, TimedPhases
from trtkp.pipeline.options import BuildOptions, check_buildable
from trtkp.pipeline.planning import plan
from trtkp.pipeline.prepare import load, prune, rewrite, survey
from trtkp.pruning.method import Method, SettingValue
from trtkp.pruning.methods.registry import DEFAULT, given_method, make_method

if TYPE_CHECKING:
    from trtkp.data.labelled import LabelledData

__all__ = ["Build", "FromModel", "Start", "build"]


def build(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    method: str | Method | None = None,
    options: BuildOptions | None = None,
    data: LabelledData | str | PathLike[str] | None = None,
    progress: Progress | None = None,
    **settings: SettingValue,
) -> Bundle:
    """Prune a model one-shot and build a bundle from it.

    Args:
        model: model file, in any format that `trtkp.load_model` reads, or a directory that `trtkp.prune` wrote.
        output: directory of the bundle; an older bundle there is replaced once the new one is complete.
        method: a method, or its name, which takes ``settings``; None for KEP. A pruned directory has its own method.
        options: backend, precision, shapes and so on; None for the defaults.
        data: inputs [N, ...] and labels [N], to measure accuracy before and after; for int8 and fp8 also what to
            calibrate with, where labels may be missing. A path is read as `trtkp.data.samples.load_samples` does.
        progress: called with a phase, the steps done and the steps in all.
        settings: settings of the method, such as ``n=4, share="per-layer"``; None for the method's default.

    Returns:
        The bundle, with its files checked. Its engine is opened at the first `Bundle.run`.

    Raises:
        InputError: an option, a setting, the model or the data cannot be used; nothing was written.
        JobError: the engine could not be built, or computes something else than its graph; nothing was written, and an
            older bundle is untouched.

    Example:
        >>> import trtkp
        >>> options = trtkp.BuildOptions(backend="onnxruntime", opt=["8x3x8x8"])
        >>> bundle = trtkp.build("net.onnx", "half", method="vskp", ratio=0.5, filter_group=16, options=options)
        >>> bundle.manifest.method
        'vskp'
        >>> totals = bundle.manifest.totals
        >>> round(totals.retained_macs / totals.dense_macs, 2)
        0.51

        A method may also be an object, which has the same settings:

        >>> bundle = trtkp.build("net.onnx", "half", method=trtkp.KEP(ratio=0.5, share="per-layer"), options=options)
        >>> bundle.manifest.method
        'kep'
    """
    options = options or BuildOptions()
    source = Path(model)
    if is_pruned(source):
        source, chosen = _stored(source, method, settings)
    elif method is None or isinstance(method, str):
        chosen = make_method(method or DEFAULT, **settings)
    else:
        chosen = given_method(method, settings)
    chosen.check_one_shot()
    backend = choose_backend(options.backend, options.device)
    check_buildable(backend, options, has_data=data is not None)
    check_replaceable(Path(output))
    job = Job(source, Path(output), backend, options, progress)
    return Build(job, FromModel(chosen, data)).run()


def _stored(path: Path, method: str | Method | None, settings: Mapping[str, Any]) -> tuple[Path, Method]:
    """The model file of a pruned directory, and its index sets as a method."""
    given = [f"--{key.replace('_', '-')}" for key, value in settings.items() if value is not None]
    if method is not None or given:
        what = given[0] if given else "--method"
        raise InputError(f"is pruned already, so {what} has no effect", file=path, remedy="leave it out")
    pruned = load_pruned(path)
    return pruned.model, pruned.method()


class Start(ABC):
    """Where a build gets its planned graphs from."""

    @abstractmethod
    def phases(self, job: Job, staging: Path) -> Phases:
        """How the phases of the build are reported and timed."""

    @abstractmethod
    def begin(self, job: Job, staging: Path, phase: Phases) -> tuple[Draft, Graphs]:
        """The planned graphs and the draft of the manifest; writes ``index_sets.safetensors`` to ``staging``."""


@dataclass(frozen=True)
class Build:
    """One build: how it starts, and then the steps of every build.

    Attributes:
        job: model, output, backend and options.
        start: a model (`FromModel`), or a bundle (`trtkp.pipeline.calibrate.FromBundle`).
    """

    job: Job
    start: Start

    def run(self) -> Bundle:
        """Run every step. The bundle appears at its place complete, or not at all."""
        job, quantised, accuracy = self.job, None, None
        with BundleWriter(job.output) as writer:
            staging = writer.staging
            phase = self.start.phases(job, staging)
            draft, graphs = self.start.begin(job, staging, phase)
            if job.options.kind is not None:
                with phase("calibrate"):
                    graphs, quantised = quantise_graphs(job, draft, graphs, staging)
            with phase("check"):
                written = write_graphs(graphs, staging)
                # Both are on disk now, and the check and the builder may need the memory. Nodes and values of a graph
                # refer to each other, so only a collection frees it, and the graphs of the steps before.
                del graphs
                gc.collect()
                checked = check_graphs(job, draft, written, quantised, staging)
            with phase("build"):
                built = build_engine(job, draft, checked, quantised)
            if draft.labelled is not None:
                with phase("accuracy"):
                    accuracy = measure_accuracy(job, draft, checked, quantised, draft.labelled)
            done = Done(checked, built, quantised, accuracy)
            writer.publish(lambda files: complete(job, draft, done, phase.seconds, files))
        return Bundle(job.output, *read_record(job.output, Manifest))


@dataclass(frozen=True)
class FromModel(Start):
    """A build that starts from a model file: load → prune → rewrite → plan.

    Attributes:
        method: the one that prunes it.
        data: labelled or unlabelled samples, as for `build`.
    """

    method: Method
    data: LabelledData | str | PathLike[str] | None

    def phases(self, job: Job, staging: Path) -> Phases:
        """See `Start`."""
        return TimedPhases(job, staging)

    def begin(self, job: Job, staging: Path, phase: Phases) -> tuple[Draft, Graphs]:
        """See `Start`."""
        with phase("load"):
            loaded = load(job, self.data)
        with phase("prune"):
            surveyed = survey(job, loaded)
            pruned = prune(job, surveyed, self.method)
        with phase("rewrite"):
            rewritten = rewrite(job, loaded, surveyed.table, pruned)
            save_index_sets(staging / "index_sets.safetensors", pruned.index_sets)
            loaded.source.release()  # its weights are in the rewritten graphs now
        with phase("plan"):
            planned = plan(job, loaded, surveyed.table, pruned, rewritten.dense, self.method)
        draft = draft_of_model(job, self.method, loaded, surveyed.table, pruned, rewritten.ops, planned)
        return draft, Graphs(rewritten.packed, planned.engine)
