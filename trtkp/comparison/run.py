"""``trtkp compare``: is an engine faster than another, and what did the speed-up cost?"""

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
from trtkp.data.options import SAMPLE_FILES, Mean, Std
from trtkp.engine import NotRunnableError
from trtkp.engine.base import Progress
from trtkp.engine.options import DeviceNumber, Threads
from trtkp.errors import InputError, JobError, TrtkpError
from trtkp.machine.gpu import check_gpu
from trtkp.machine.timing import Timing, sample_interleaved
from trtkp.model.options import InputShape
from trtkp.settings import Setting, check_values
from trtkp.shapes import Shape
from trtkp.version import __version__

__all__ = ["compare"]

#: Number of profiled runs whose median is taken for each layer.
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
            f"Samples to compare outputs and accuracy on: {SAMPLE_FILES}.",
            essential=True,
        ),
    ] = None,
    mean: Mean = (0.0,),
    std: Std = (1.0,),
    input_shape: InputShape = (),
    threads: Threads = None,
    device: DeviceNumber = 0,
    openings: Annotated[int, Setting("Times that every engine is opened anew; they share the rounds.", ge=1)] = 5,
    warmup: Annotated[int, Setting("Untimed rounds for each opening and batch size.", ge=0)] = 5,
    runs: Annotated[int, Setting("Timed rounds for each batch size.", ge=1)] = 100,
    seconds: Annotated[float | None, Setting("Seconds that one batch size may take.", gt=0)] = 20.0,
    layers: Annotated[bool, Setting("Profile layer by layer, in runs of their own.")] = True,
    seed: Annotated[int, Setting("Seed of random inputs and of the bootstrap.", ge=0)] = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare engines of one model: speed, outputs, accuracy, memory, and time per layer.

    Args:
        engines: two or more bundles, ONNX files or TensorRT engines; the first is the baseline.
        batches: batch sizes to time; empty for the baseline's typical one.
        data: samples on which outputs are compared, and accuracy where they have labels; None for the inputs that are
            used for timing.
        mean: subtracted from images scaled to 0..1; one value, or one per channel.
        std: then divides them; one value, or one per channel.
        input_shape: shapes for dynamic sizes that no profile sets, as in ``build``.
        threads: CPU threads of ONNX Runtime; None for the number of physical cores.
        device: number of the GPU that runs TensorRT engines.
        openings: how often every engine is opened; the timed rounds are divided among the openings.
        warmup: untimed rounds per opening and batch size.
        runs: timed rounds per batch size, rounded up to a multiple of ``openings``; fewer if ``seconds`` have passed.
        seconds: time limit per batch size; None for no limit.
        layers: whether to profile every engine layer by layer, in separate runs.
        seed: seed of random inputs and of the bootstrap.
        progress: called with phase, step and total.

    Returns:
        One entry per engine: latencies in ms with the speed-up over the baseline and its 95 % interval, differences of
        the outputs, costs, memory in bytes, and times per layer.

    Raises:
        InputError: there are fewer than two engines, a file is none of the three kinds, inputs or outputs differ, an
            engine does not accept a batch size, the data does not fit, or there is no such GPU.
        IntegrityError: a bundle's file is missing or was changed.
        NotRunnableError: an engine cannot run on this machine.

    Example:
        >>> import trtkp
        >>> comparison = trtkp.compare(["dense", "kep"], batches=[1, 8], runs=10, openings=2, layers=False)
        >>> pruned = comparison.entries[1]
        >>> [latency.batch for latency in pruned.latencies]
        [1, 8]
        >>> pruned.latencies[0].speed_up.value > 0
        True
    """
    given = {
        "batches": batches, "mean": mean, "std": std, "threads": threads, "device": device, "openings": openings,
        "warmup": warmup, "runs": runs, "seconds": seconds, "seed": seed,
    }  # fmt: skip
    check_values(compare, given)
    check_gpu(device)
    if len(set(batches)) != len(batches):
        raise InputError(f"--batch {','.join(map(str, batches))}: one batch size is named twice")
    tell = progress or (lambda phase, done, total: None)
    subjects = open_subjects(engines)
    with ExitStack() as stack:
        tell("Opening the engines", 0, 1)
        runners = {subject.name: stack.enter_context(subject.open(threads, device)) for subject in subjects}
        inputs = common_inputs(subjects, runners, data=data, mean=mean, std=std, input_shape=input_shape, seed=seed)
        sweep = tuple(batches) or (inputs.usual_batch,)
        shapes = {batch: inputs.shapes(batch) for batch in sweep}
        used = {name: runner.threads for name, runner in runners.items()}
        tell("Comparing outputs", 0, 1)
        scores = score(runners, inputs.batches(sweep, every=data is not None))
    # The engines opened above are closed by now: timing opens them again, several times.
    samples = _time(subjects, inputs, sweep, threads, device, min(openings, runs), warmup, runs, seconds, tell)
    entries = []
    for done, subject in enumerate(subjects):
        tell(f"Looking into {subject.label}", done, len(subjects))
        own = tuple(
            _latency(batch, taken[subjects[0].name], taken[subject.name], seed) for batch, taken in samples.items()
        )
        parts = _Parts(subject, inputs, shapes, threads, device, layers)
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
    device: int,
    openings: int,
    warmup: int,
    runs: int,
    seconds: float | None,
    tell: Progress,
) -> dict[int, dict[str, list[list[int]]]]:
    """Time all engines in turn. Returns nanoseconds [openings][rounds], by batch size and engine.

    Every opening opens all engines again, since the place of an engine in memory influences its speed (see `ratio`).
    """
    samples: dict[int, dict[str, list[list[int]]]] = {batch: {s.name: [] for s in subjects} for batch in sweep}
    for opening in range(openings):
        with ExitStack() as stack:
            runners = {subject.name: stack.enter_context(subject.open(threads, device)) for subject in subjects}
            for position, batch in enumerate(sweep):
                tell(f"Timing batch {batch}", opening * len(sweep) + position, openings * len(sweep))
                feeds = inputs.feeds(batch)
                taken = sample_interleaved(
                    {name: partial(runner.run, feeds) for name, runner in runners.items()},
                    warmup=warmup,
                    runs=-(-runs // openings),
                    time_limit_s=None if seconds is None else seconds / openings,
                )
                for name, nanoseconds in taken.items():
                    samples[batch][name].append(nanoseconds)
    return samples


def _latency(batch: int, baseline: list[list[int]], taken: list[list[int]], seed: int) -> Latency:
    timing = Timing.from_nanoseconds([ns for opening in taken for ns in opening])
    return Latency(batch, timing, batch / timing.median_ms * 1e3, ratio_of_medians(baseline, taken, seed=seed))


class _Parts:
    """Collects everything about one engine besides its speed: costs, memory, layers, density maps."""

    def __init__(
        self,
        subject: Subject,
        inputs: Inputs,
        shapes: Mapping[int, Mapping[str, Shape]],
        threads: int | None,
        device: int,
        layers: bool,
    ) -> None:
        self.subject, self.inputs, self.shapes, self.layers = subject, inputs, shapes, layers
        self.threads, self.device = threads, device
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
            self.notes.append("parameters and MACs are unknown: a bare engine does not state them")
            return None
        import onnx_ir as ir

        from trtkp.graph.layers import conv_layers

        try:
            table = conv_layers(ir.load(self.subject.file), next(iter(self.shapes.values())))
        except TrtkpError as error:
            self.notes.append(f"parameters and MACs are not counted: {error.message}")
            return None
        # An ONNX file is computed densely: its zeros cost as much as any other weight.
        return Costs(
            table.params, table.params, table.macs, table.macs, density=1.0, bound=1.0, index_bytes=0,
            paper_index_bytes=None,
        )  # fmt: skip

    def _layers(self) -> LayerTimes | None:
        if not self.layers:
            self.notes.append("layers were not profiled: switched off")
            return None
        subject, batch = self.subject, max(self.shapes)
        graph = subject.graph
        if graph is None:
            self.notes.append("layers were not profiled: a bare engine does not name the layers of its nodes")
            return None
        known = {r.node: r.name for r in subject.bundle.manifest.layers} if subject.bundle is not None else {}
        try:
            profile = subject.backend.profile(
                subject.file, self.inputs.feeds(batch), threads=self.threads, runs=_PROFILED, device=self.device
            )
        except (NotRunnableError, JobError) as error:
            self.notes.append(f"layers were not profiled: {error.message}")
            return None
        return layer_times(profile, node_layers(read_graph(graph), known), batch)


def _environment() -> dict[str, str]:
    from trtkp.engine.doctor import doctor

    return dict(_described_machine(doctor()))


def _described_machine(checks: Sequence[Any]) -> Iterator[tuple[str, str]]:
    yield "trtkp", __version__
    if hasattr(os, "getloadavg"):
        yield "load", f"{os.getloadavg()[0]:.1f} processes on average in the last minute, including these runs"
    for check in checks:
        if check.status == "ok" and not check.name.startswith("backend"):
            yield check.name, " ".join(filter(None, (check.version, check.detail)))
