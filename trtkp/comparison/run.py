"""``compare``: is it faster, and what did it cost?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from trtkp.bundle import Bundle
from trtkp.comparison.density import density_maps
from trtkp.comparison.difference import Scores, score
from trtkp.comparison.inputs import Inputs, common_inputs
from trtkp.comparison.layers import layer_times, node_layers, read_graph
from trtkp.comparison.memory import measure_memory
from trtkp.comparison.ratio import ratio_of_medians
from trtkp.comparison.result import Comparison, Costs, Entry, Latency, LayerTimes
from trtkp.comparison.settings import build_command, build_settings
from trtkp.comparison.subject import Subject, open_subjects
from trtkp.data.options import Mean, Std
from trtkp.engine import NotRunnableError
from trtkp.engine.base import Progress
from trtkp.engine.options import Threads
from trtkp.errors import InputError, JobError, TrtkpError
from trtkp.machine.timing import Timing, sample_interleaved
from trtkp.model.options import InputShape
from trtkp.settings import Setting, check_values
from trtkp.shapes import Shape
from trtkp.version import __version__

__all__ = ["compare"]

#: Runs of a layer profile.
_PROFILED = 20


def compare(
    engines: Sequence[str | PathLike[str] | Bundle],
    *,
    batches: Annotated[
        Sequence[int],
        Setting(
            "Batch sizes to time, as 1,8,32.",
            ge=1,
            flag="--batch",
            default="the usual one of the first",
            essential=True,
        ),
    ] = (),
    data: Annotated[
        str | PathLike[str] | None,
        Setting(
            "Samples to compare outputs and accuracy on: an .npz of x (and y), a folder of images, or CIFAR batches.",
            essential=True,
        ),
    ] = None,
    mean: Mean = (0.0,),
    std: Std = (1.0,),
    input_shape: InputShape = (),
    threads: Threads = None,
    openings: Annotated[int, Setting("Times that every engine is opened anew; they share the rounds.", ge=1)] = 5,
    warmup: Annotated[int, Setting("Untimed rounds for each opening and batch size.", ge=0)] = 5,
    runs: Annotated[int, Setting("Timed rounds for each batch size.", ge=1)] = 100,
    seconds: Annotated[float | None, Setting("Seconds that one batch size may take.", gt=0)] = 20.0,
    layers: Annotated[bool, Setting("Profile layer by layer, in runs of their own.")] = True,
    seed: Annotated[int, Setting("Seed of random inputs and of the bootstrap.", ge=0)] = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Run engines on the same inputs, in turn; the first is the baseline.

    Args:
        engines: two or more bundles, ONNX files or TensorRT engines of one model.
        batches: batch sizes to time; none for the baseline's usual one.
        data: samples to compare outputs on, and accuracy where they have labels; without, the timed inputs.
        mean: of images in 0..1, for all channels or each.
        std: likewise.
        input_shape: for dynamic sizes that no profile sets, as in ``build``.
        threads: CPU threads of ONNX Runtime; None for the physical cores.
        openings: times that every engine is opened anew; rounds are shared out among them.
        warmup: untimed rounds for each opening and batch size.
        runs: timed rounds for each batch size in all, rounded up to the same number for each opening, fewer when
            ``seconds`` are over.
        seconds: budget of a batch size; None for no limit.
        layers: profile every engine layer by layer, in a run of its own.
        seed: of random inputs and of the bootstrap.
        progress: told what is being done.

    Raises:
        InputError: fewer than two, a file that is none of the three, inputs or outputs that differ, a batch that one
            of them does not take, or data that does not fit.
        IntegrityError: a corrupted bundle.
        NotRunnableError: an engine cannot run on this machine.
    """
    given = {
        "batches": batches, "mean": mean, "std": std, "threads": threads, "openings": openings, "warmup": warmup,
        "runs": runs, "seconds": seconds, "seed": seed,
    }  # fmt: skip
    check_values(compare, given)
    if len(set(batches)) != len(batches):
        raise InputError(f"--batch {','.join(map(str, batches))}: one batch size is named twice")
    tell = progress or (lambda phase, done, total: None)
    subjects = open_subjects(engines)
    with ExitStack() as stack:
        tell("Opening the engines", 0, 1)
        runners = {subject.name: stack.enter_context(subject.open(threads)) for subject in subjects}
        inputs = common_inputs(subjects, runners, data=data, mean=mean, std=std, input_shape=input_shape, seed=seed)
        sweep = tuple(batches) or (inputs.usual_batch,)
        shapes = {batch: inputs.shapes(batch) for batch in sweep}
        used = {name: runner.threads for name, runner in runners.items()}
        tell("Comparing outputs", 0, 1)
        scores = score(runners, inputs.batches(sweep, every=data is not None))
    samples = _time(subjects, inputs, sweep, threads, min(openings, runs), warmup, runs, seconds, tell)
    entries = []
    for done, subject in enumerate(subjects):
        tell(f"Looking into {subject.label}", done, len(subjects))
        own = tuple(
            _latency(batch, taken[subjects[0].name], taken[subject.name], seed) for batch, taken in samples.items()
        )
        parts = _Parts(subject, inputs, shapes, threads, layers)
        entries.append(parts.entry(own, scores[subject.name], used[subject.name], baseline=done == 0))
    return Comparison(
        entries=tuple(entries),
        batches=sweep,
        inputs=inputs.source,
        data=None if data is None else Path(data).name,
        rounds={"openings": min(openings, runs), "warmup": warmup, "runs": runs, "seconds": seconds},
        environment=_environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _time(
    subjects: Sequence[Subject],
    inputs: Inputs,
    sweep: Sequence[int],
    threads: int | None,
    openings: int,
    warmup: int,
    runs: int,
    seconds: float | None,
    tell: Progress,
) -> dict[int, dict[str, list[list[int]]]]:
    """Nanoseconds [openings][rounds] of every engine at every batch size; each opening opens all engines anew."""
    samples: dict[int, dict[str, list[list[int]]]] = {batch: {s.name: [] for s in subjects} for batch in sweep}
    for opening in range(openings):
        with ExitStack() as stack:
            runners = {subject.name: stack.enter_context(subject.open(threads)) for subject in subjects}
            for position, batch in enumerate(sweep):
                tell(f"Timing batch {batch}", opening * len(sweep) + position, openings * len(sweep))
                feeds = inputs.feeds(batch)
                taken = sample_interleaved(
                    {name: partial(runner.run, feeds) for name, runner in runners.items()},
                    warmup=warmup,
                    runs=-(-runs // openings),
                    budget_s=None if seconds is None else seconds / openings,
                )
                for name, nanoseconds in taken.items():
                    samples[batch][name].append(nanoseconds)
    return samples


def _latency(batch: int, baseline: list[list[int]], taken: list[list[int]], seed: int) -> Latency:
    timing = Timing.from_nanoseconds([ns for opening in taken for ns in opening])
    return Latency(batch, timing, batch / timing.median_ms * 1e3, ratio_of_medians(baseline, taken, seed=seed))


class _Parts:
    """What an engine is besides fast: costs, memory, layers, index sets."""

    def __init__(
        self,
        subject: Subject,
        inputs: Inputs,
        shapes: Mapping[int, Mapping[str, Shape]],
        threads: int | None,
        layers: bool,
    ) -> None:
        self.subject, self.inputs, self.shapes, self.threads, self.layers = subject, inputs, shapes, threads, layers
        self.notes: list[str] = []

    def entry(self, latencies: tuple[Latency, ...], scores: Scores, used: int | None, *, baseline: bool) -> Entry:
        subject, bundle = self.subject, self.subject.bundle
        memory = measure_memory(subject, self.shapes[max(self.shapes)], self.threads)
        if isinstance(memory, str):
            self.notes.append(memory)
        return Entry(
            name=subject.name,
            label=subject.label,
            kind=subject.kind,
            backend=subject.backend.name,
            precision=bundle.manifest.precision if bundle is not None else None,
            threads=used,
            latencies=latencies,
            difference=None if baseline else scores.difference,
            accuracy=scores.accuracy,
            costs=self._costs(),
            engine_bytes=subject.engine_bytes,
            memory=None if isinstance(memory, str) else memory,
            layers=self._layers(),
            settings=build_settings(bundle) if bundle is not None else {},
            command=build_command(bundle) if bundle is not None else None,
            density_maps=tuple(density_maps(bundle)) if bundle is not None else (),
            notes=tuple(self.notes),
        )

    def _costs(self) -> Costs | None:
        if self.subject.bundle is not None:
            totals = self.subject.bundle.manifest.totals
            return Costs(
                **totals.model_dump(exclude={"as_in_paper"}),
                density=totals.retained_macs / totals.dense_macs if totals.dense_macs else None,
                bound=totals.dense_macs / totals.retained_macs if totals.retained_macs else None,
            )
        if self.subject.kind == "engine":
            self.notes.append("parameters and MACs are not known: a bare engine does not tell them")
            return None
        import onnx_ir as ir

        from trtkp.graph.layers import conv_layers

        try:
            table = conv_layers(ir.load(self.subject.file), next(iter(self.shapes.values())))
        except TrtkpError as error:
            self.notes.append(f"parameters and MACs are not counted: {error.message}")
            return None
        # the zeros of a plain graph are computed like any other weight
        return Costs(
            table.params, table.params, table.macs, table.macs, density=1.0, bound=1.0, index_bytes=0,
            paper_index_bytes=None,
        )  # fmt: skip

    def _layers(self) -> LayerTimes | None:
        if not self.layers:
            self.notes.append("layers were not profiled: not asked for")
            return None
        subject, batch = self.subject, max(self.shapes)
        graph = subject.graph
        if graph is None:
            self.notes.append("layers were not profiled: a bare engine does not tell which node is of which layer")
            return None
        known = {r.node: r.name for r in subject.bundle.manifest.layers} if subject.bundle is not None else {}
        try:
            profile = subject.backend.profile(
                subject.file, self.inputs.feeds(batch), threads=self.threads, runs=_PROFILED
            )
        except (NotRunnableError, JobError) as error:
            self.notes.append(f"layers were not profiled: {error.message}")
            return None
        return layer_times(profile, node_layers(read_graph(graph), known), batch)


def _environment() -> dict[str, str]:
    from trtkp.engine.doctor import diagnose

    return dict(_described_machine(diagnose()))


def _described_machine(checks: Sequence[Any]) -> Iterator[tuple[str, str]]:
    yield "trtkp", __version__
    if hasattr(os, "getloadavg"):
        yield "load", f"{os.getloadavg()[0]:.1f} processes on average in the last minute, these runs included"
    for check in checks:
        if check.status == "ok" and not check.name.startswith("backend"):
            yield check.name, " ".join(filter(None, (check.version, check.detail)))
