"""Choose inputs that every compared engine accepts: names, types and shapes, and the data to feed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from trtkp.comparison.difference import Batch
from trtkp.comparison.subject import Subject
from trtkp.data.samples import Samples, load_samples
from trtkp.engine.base import Runner
from trtkp.engine.feeds import fits, random_feeds
from trtkp.errors import InputError
from trtkp.shapes import Dim, Shape, ShapeRange, TensorSpec, parse_shape_options

__all__ = ["Inputs", "common_inputs"]

Array: TypeAlias = npt.NDArray[Any]

#: Batch size where neither a profile nor the user gives one.
_BATCH = 8


@dataclass(frozen=True)
class _Size:
    """The allowed sizes ``low`` to ``high`` of one dimension, and its typical size ``opt``; None if unknown."""

    low: int
    opt: int | None
    high: float


@dataclass(frozen=True)
class Inputs:
    """Shapes that every engine accepts, and the data to feed.

    Attributes:
        specs: names and types of the inputs.
        sizes: allowed sizes of every input's dimensions, the batch first.
        batched: inputs whose first dimension is the batch.
        limits: allowed sizes of each engine, by engine and input, for error messages.
        samples: real samples; None where the inputs are random.
        source: description of the data, for reports.
        seed: seed of random inputs.
    """

    specs: tuple[TensorSpec, ...]
    sizes: Mapping[str, tuple[_Size, ...]]
    batched: tuple[str, ...]
    limits: Mapping[str, Mapping[str, tuple[_Size, ...]]]
    samples: Samples | None
    source: str
    seed: int

    @property
    def usual_batch(self) -> int:
        """The baseline's typical batch, clipped to what all engines accept."""
        if not self.batched:
            return 1
        size = self.sizes[self.batched[0]][0]
        return int(min(max(size.opt or _BATCH, size.low), size.high))

    def shapes(self, batch: int) -> dict[str, Shape]:
        """Return the input shapes of a run with ``batch`` samples.

        Raises:
            InputError: one of the engines does not accept this batch.
        """
        for owner, sizes in self.limits.items():
            for name in self.batched:
                size = sizes[name][0]
                if not size.low <= batch <= size.high:
                    high = "" if math.isinf(size.high) else int(size.high)
                    raise InputError(
                        f"batch {batch} is outside {size.low}..{high}, the range of input {name}",
                        file=owner,
                        remedy="choose another --batch, or build it with other --min and --max",
                    )
        return {
            name: tuple(
                batch if axis == 0 and name in self.batched else int(s.opt or s.low) for axis, s in enumerate(d)
            )
            for name, d in self.sizes.items()
        }

    def feeds(self, batch: int) -> dict[str, Array]:
        """Return the inputs of a run with ``batch`` samples: the first ones, repeated if there are too few."""
        shapes = self.shapes(batch)
        if self.samples is None:
            return random_feeds(self.specs, shapes, self.seed)
        (spec,) = self.specs
        return {spec.name: np.resize(self.samples.inputs, shapes[spec.name]).astype(spec.dtype, copy=False)}

    def batches(self, sweep: Sequence[int], *, every: bool) -> Iterator[Batch]:
        """Yield the inputs on which outputs are compared: all samples if ``every``, otherwise one run per batch."""
        if self.samples is None or not every:
            for batch in sweep:
                yield Batch(self.feeds(batch), batch)
            return
        (spec,) = self.specs
        begin, shape, size = 0, self.shapes(self.usual_batch)[spec.name], self.sizes[spec.name][0]
        limits = ShapeRange((size.low, *shape[1:]), shape, shape)
        for inputs, count in self.samples.batches(limits):
            labels = None if self.samples.labels is None else self.samples.labels[begin : begin + count]
            yield Batch({spec.name: inputs.astype(spec.dtype, copy=False)}, count, labels)
            begin += count


def common_inputs(
    subjects: Sequence[Subject],
    runners: Mapping[str, Runner],
    *,
    data: str | PathLike[str] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    input_shape: Sequence[str] = (),
    seed: int = 0,
) -> Inputs:
    """Compare the inputs of all engines, and choose inputs that all of them accept.

    Args:
        subjects: what is compared, the baseline first.
        runners: the opened engines, by the subjects' names.
        data: real samples, for a model with one input (`trtkp.data.samples.load_samples`).
        mean: subtracted from images, as for `load_samples`.
        std: divides images, as for `load_samples`.
        input_shape: ``1x3x224x224`` or ``name:1x3x224x224``, for dynamic sizes that no profile sets.
        seed: seed of random inputs.

    Raises:
        InputError: an engine's inputs have other names, types or shapes than the baseline's, a size is unknown, or the
            data does not fit.
    """
    baseline = subjects[0].name
    specs = runners[baseline].inputs
    given = parse_shape_options(list(input_shape), specs, "--input-shape")
    for spec in specs:
        if spec.name in given and not fits(spec, given[spec.name]):
            raise InputError(f"--input-shape {'x'.join(map(str, given[spec.name]))}: does not fit the input {spec}")
    limits = {subject.name: _sizes(subject, runners[subject.name].inputs, given) for subject in subjects}
    for subject in subjects[1:]:
        _check_specs(subject.name, runners[subject.name].inputs, specs)
    sizes = {spec.name: _common(spec, [(owner, own[spec.name]) for owner, own in limits.items()]) for spec in specs}
    with_rank = [spec for spec in specs if spec.shape]
    # Where the first dimension is dynamic it is the batch; where none is, the model has a fixed batch in all of them.
    dynamic = tuple(spec.name for spec in with_rank if sizes[spec.name][0].low < sizes[spec.name][0].high)
    batched = dynamic or tuple(spec.name for spec in with_rank)
    samples, source = _samples(subjects, specs, sizes, data, mean, std, seed)
    return Inputs(specs, sizes, batched, limits, samples, source, seed)


def _sizes(subject: Subject, specs: Sequence[TensorSpec], given: Mapping[str, Shape]) -> dict[str, tuple[_Size, ...]]:
    """Allowed sizes from a bundle's profile, an engine's own profile, or the dimensions of an ONNX file."""
    found: dict[str, tuple[_Size, ...]] = {}
    for spec in specs:
        if subject.bundle is not None:
            limits = subject.bundle.manifest.profile[spec.name]
            found[spec.name] = tuple(map(_Size, limits["min"], limits["opt"], limits["max"]))
            continue
        usual: Sequence[int | None] = given.get(spec.name) or (None,) * len(spec.shape)
        found[spec.name] = tuple(_size(dim, opt) for dim, opt in zip(spec.shape, usual, strict=True))
    return found


def _size(dim: int | Dim, usual: int | None) -> _Size:
    if isinstance(dim, int):
        return _Size(dim, dim, dim)
    return _Size(dim.minimum, usual, math.inf if dim.maximum is None else dim.maximum)


def _check_specs(name: str, specs: Sequence[TensorSpec], baseline: Sequence[TensorSpec]) -> None:
    remedy = "compare engines of one model; with fp16, build both with or both without --convert-io"
    if {spec.name for spec in specs} != {spec.name for spec in baseline}:
        raise InputError(f"has inputs {_listed(specs)}, the baseline {_listed(baseline)}", file=name, remedy=remedy)
    own = {spec.name: spec for spec in specs}
    for spec in baseline:
        if own[spec.name].dtype != spec.dtype or len(own[spec.name].shape) != len(spec.shape):
            raise InputError(f"has input {own[spec.name]}, the baseline {spec}", file=name, remedy=remedy)


def _common(spec: TensorSpec, limits: Sequence[tuple[str, tuple[_Size, ...]]]) -> tuple[_Size, ...]:
    """Intersect the allowed sizes of all engines, per dimension. The first engine with a typical size sets it."""
    common = []
    for axis in range(len(spec.shape)):
        sizes = [own[axis] for _, own in limits]
        low, high = max(size.low for size in sizes), min(size.high for size in sizes)
        if low > high:
            ranges = ", ".join(f"{owner} {own[axis].low}..{own[axis].high}" for owner, own in limits)
            raise InputError(
                f"input {spec.name}: no size of dimension {axis} fits all engines: {ranges}",
                remedy="build them with the same --min, --opt and --max",
            )
        usual = next((size.opt for size in sizes if size.opt is not None), None)
        if usual is None and axis and low < high:
            raise InputError(f"dimension {axis} of input {spec} is dynamic", remedy="give --input-shape")
        opt = None if usual is None and low < high else int(min(max(usual or low, low), high))
        common.append(_Size(low, opt, high))
    return tuple(common)


def _samples(
    subjects: Sequence[Subject],
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, tuple[_Size, ...]],
    data: str | PathLike[str] | None,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
) -> tuple[Samples | None, str]:
    """Load or choose samples, and describe them.

    An 8-bit engine gets inputs within its calibrated range: it clips others, which would say nothing about its quality.
    """
    if data is not None:
        if len(specs) != 1:
            raise InputError(f"--data needs a model with one input, but this one has {len(specs)}")
        shape = [int(size.opt or size.low) for size in sizes[specs[0].name][1:]]
        samples = load_samples(data, shape, mean=mean, std=std)
        return samples, f"all {len(samples.inputs)} samples of {Path(data).name}"
    quantised = next((s for s in subjects if s.bundle is not None and s.bundle.manifest.quantisation), None)
    if quantised is None or quantised.bundle is None or len(specs) != 1:
        return None, f"standard-normal random inputs, seed {seed}"
    from trtkp.verification.bundle import calibrated_inputs

    kept = quantised.bundle.samples
    count = len(kept) if kept is not None else _BATCH
    shape = [int(size.opt or size.low) for size in sizes[specs[0].name][1:]]
    inputs = calibrated_inputs(quantised.bundle, (count, *shape), seed)
    words = (
        "samples that" if kept is not None and list(kept.shape[1:]) == shape else "random inputs within the range that"
    )
    return Samples(inputs, name=quantised.label), f"{words} {quantised.label} was calibrated with"


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) or "nothing"
