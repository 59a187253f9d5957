"""Quantise a planned graph: find ranges on samples, choose which layers to quantise, insert Q/DQ pairs.

The steps are: measure the range of every tensor (`ranges`), try every layer alone (`sensitivity`), take the most
sensitive layers out of quantisation until the accuracy is within its limit, and write the mixed graph (`qdq`).
Everything that was found is recorded in a `Calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.bundle.calibration import Calibration, DataRecord, LayerChoice, Scores, TensorRange, scale_of
from trtkp.calib.options import DEFAULT_MAX_DROP, CalibrationOptions
from trtkp.calib.placement import Placement, find_sites, place
from trtkp.calib.qdq import Kind, insert
from trtkp.calib.ranges import measure_ranges
from trtkp.calib.scales import attach_scales
from trtkp.calib.sensitivity import Scorer, choose_unquantised
from trtkp.data.samples import Samples, check_samples
from trtkp.engine import Backend
from trtkp.engine.base import QdqVariant, fuses_qdq
from trtkp.errors import InputError
from trtkp.machine.timing import Timing
from trtkp.plan.planner import NET_TIME_LIMIT_S
from trtkp.plan.race import race
from trtkp.shapes import Profile

__all__ = ["Quantised", "apply_calibration", "calibrate_graph", "quantise"]

#: Number of samples on which each layer is tried alone. That takes one run per layer, so it uses fewer samples than the
#: scores of the whole net; it only ranks the layers.
_SENSITIVITY_SAMPLES = 32

#: Number of samples that a bundle keeps for ``trtkp verify``: enough for its batch of 3, and few to publish.
_KEPT_SAMPLES = 4

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quantised:
    """A quantised graph.

    Attributes:
        engine: the graph with Q/DQ pairs; the layers that are not quantised have the fallback's type.
        calibration: the ranges and precisions, and how they were found.
        samples: a few calibration inputs [N, ...]; None where no data was given.
        floating: time of the planned graph before quantisation; None where it cannot be timed on this machine.
        quantised: time of `engine`, measured in turn with it.
        notes: remarks for the user, one line each.
    """

    engine: ir.Model
    calibration: Calibration
    samples: npt.NDArray[Any] | None = None
    floating: Timing | None = None
    quantised: Timing | None = None
    notes: tuple[str, ...] = ()


def quantise(
    packed: ir.Model,
    planned: ir.Model,
    profile: Profile,
    options: CalibrationOptions,
    *,
    kind: Kind,
    backend: Backend,
    samples: Samples | None = None,
    calibration: Calibration | None = None,
    keep_io: bool = True,
    lowerings: Mapping[str, str] | None = None,
    threads: int | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Quantised:
    """Quantise a planned graph, and attach scales to the packed operators of ``model.onnx``.

    Args:
        packed: ``model.onnx`` in float32. The nodes of quantised layers get their scales (`scales.attach_scales`).
        planned: ``engine.onnx`` in float32; not changed.
        profile: shape limits of the inputs.
        options: options of the calibration.
        kind: int8 or fp8.
        backend: name of the backend, which decides the Q/DQ variant and the default fallback.
        samples: samples to calibrate with.
        calibration: ranges and precisions to use as they are, instead of calibrating.
        keep_io: whether inputs and outputs stay float32 if the fallback is fp16.
        lowerings: lowering of every packed layer by name, for the record.
        threads: CPU threads of ONNX Runtime.
        state: file for the state of the calibration, from which an interrupted one continues.
        progress: called with phase, step and total.

    Raises:
        InputError: there are neither samples nor a calibration, the calibration does not fit, or the backend cannot
            compute in this type.
        JobError: the net computes NaN or infinity.
    """
    backend.check_quantisable(kind)
    variant, fallback = backend.qdq_variant, options.fallback or backend.default_fallback
    notes = []
    if calibration is None:
        if samples is None:
            raise InputError(
                f"--precision {kind} needs samples of real inputs for calibration",
                remedy="give --data, or --calibration with an existing calibration.json",
            )
        calibration = calibrate_graph(
            planned, samples, profile, options, variant=variant, kind=kind, fallback=fallback, lowerings=lowerings,
            threads=threads, state=state, progress=progress,
        )  # fmt: skip
        if len(samples.inputs) == 1:
            notes.append("calibrated on one sample: other inputs may exceed its ranges")
        elif not np.ptp(samples.inputs, axis=0).any():
            notes.append("calibrated on copies of one sample: other inputs may exceed its ranges")
    else:
        if calibration.kind != kind:
            raise InputError(f"the calibration is for {calibration.kind}, not {kind}", remedy="calibrate again")
        layers = {
            name: choice.model_copy(update={} if choice.precision == kind else {"precision": fallback})
            for name, choice in calibration.layers.items()
        }
        calibration = calibration.model_copy(update={"form": variant, "fallback": fallback, "layers": layers})
    engine = apply_calibration(planned, calibration, variant=variant, fallback=fallback, keep_io=keep_io)
    attach_scales(packed, calibration)
    floating = quantised = None
    if backend.runs_on_cpu:
        shapes = {name: limits.opt for name, limits in profile.items()}
        times = race({"floating": planned, "quantised": engine}, shapes, threads, NET_TIME_LIMIT_S)
        floating, quantised = times["floating"], times["quantised"]
        if quantised.median_ms > floating.median_ms:
            notes.append(
                f"the {kind} engine took {quantised.median_ms:.3f} ms, the floating-point one "
                f"{floating.median_ms:.3f} ms: quantisation does not pay off on this machine"
            )
    few = samples.spread(_KEPT_SAMPLES).inputs if samples is not None else None
    return Quantised(engine, calibration, few, floating, quantised, tuple(notes))


def calibrate_graph(
    model: ir.Model,
    samples: Samples,
    profile: Profile,
    options: CalibrationOptions,
    *,
    variant: QdqVariant,
    kind: Kind = "int8",
    fallback: Literal["fp32", "fp16"] = "fp32",
    lowerings: Mapping[str, str] | None = None,
    threads: int | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Find the range of every tensor, and choose the precision of every layer.

    Args:
        model: the planned graph in float32.
        samples: samples [N, ...] in the shape of the model's input.
        profile: shape limits of the model's only input.
        options: options of the calibration.
        variant: the Q/DQ variant (`placement`).
        kind: int8 or fp8.
        fallback: type of the layers that are not quantised.
        lowerings: lowering of every packed layer by name, for the record.
        threads: CPU threads of ONNX Runtime.
        state: file for the state, from which an interrupted calibration continues; removed at the end.
        progress: called with phase, step and total.

    Raises:
        InputError: an option is invalid, the model has several inputs or no layer to quantise, or ``max_drop`` was
            given for a model that is not a classifier.
        JobError: the net computes NaN or infinity.
    """
    if len(profile) != 1:
        raise InputError(f"calibration needs a model with one input, but this one has {len(profile)}")
    limits = next(iter(profile.values()))
    check_samples(samples, limits.opt[1:])
    measured = samples.spread(options.samples)
    everywhere = place(model, variant)
    layers = list(dict.fromkeys(site.layer for site in everywhere.sites))
    if not layers:
        raise InputError("the model has no layer to quantise: no convolution or Gemm with a constant weight")
    fused = fuses_qdq(variant)
    scorer = Scorer(model, samples, profile, threads, fuse_qdq=fused)
    if options.max_drop is not None and scorer.measure is None:
        raise InputError(
            "--max-drop needs a classifier: the model's first output is not [N, classes]", remedy="leave it out"
        )
    ranges = measure_ranges(
        model,
        everywhere.tensors,
        (batch for batch, _ in measured.batches(limits)),
        method=options.calibrator,
        percentile=options.percentile,
        count=-(-len(measured.inputs) // limits.opt[0]),
        progress=progress,
        state=state,
        key=f"{measured.digest} {limits.opt}",
    )
    amax = {name: found.amax for name, found in ranges.items()}
    reasons = _always_zero(model, layers, amax)

    def quantised(some: list[str]) -> ir.Model:
        return insert(model, place(model, variant, some), amax, kind)

    candidates = [layer for layer in layers if layer not in reasons]
    few = Scorer(model, samples.spread(_SENSITIVITY_SAMPLES), profile, threads, fuse_qdq=fused)
    errors = {}
    for done, layer in enumerate(candidates):
        if progress is not None:
            progress("Trying each layer alone", done, len(candidates))
        errors[layer] = few.error(few.outputs(quantised([layer])))
    by_error = sorted(candidates, key=lambda layer: (-errors[layer], layer))  # ties by name: the same file every time

    scores: dict[tuple[str, ...], float] = {}  # scoring runs all samples, and the same choice is asked for twice

    def score(some: list[str]) -> float:
        if tuple(some) not in scores:
            if progress is not None:
                progress(f"Scoring with {len(some)} of {len(layers)} layers quantised", 0, 1)
            found = scorer.score(scorer.outputs(quantised(some) if some else model))
            scores[tuple(some)] = found if found is not None else float("nan")
        return scores[tuple(some)]

    floating = scorer.score(scorer.expected)
    max_drop = None
    if floating is not None:
        max_drop = DEFAULT_MAX_DROP if options.max_drop is None else options.max_drop
        left = choose_unquantised(by_error, floating, max_drop, lambda some: score(list(some)))
        reasons |= dict.fromkeys(left, f"left in floating point to keep the drop within {max_drop:g} points")
    kept = [layer for layer in by_error if layer not in reasons]
    final = scorer.outputs(quantised(kept) if kept else model)
    all_score, kept_score = (score(by_error), score(kept)) if floating is not None else (None, None)
    if state is not None:
        state.unlink(missing_ok=True)
    return Calibration(
        kind=kind,
        form=variant,
        fallback=fallback,
        method=options.calibrator,  # type: ignore[arg-type]  # checked above
        percentile=options.percentile if options.calibrator == "percentile" else None,
        data=DataRecord(
            name=samples.name,
            sha256=measured.digest,
            samples=len(measured.inputs),
            shape=list(measured.inputs.shape[1:]),
        ),
        scores=Scores(
            measure=scorer.measure,  # type: ignore[arg-type]  # one of the three
            samples=len(samples.inputs),
            floating=floating,
            all_quantised=all_score,
            kept=kept_score,
            drop=None if floating is None or kept_score is None else round(100 * (floating - kept_score), 6),
            max_drop=max_drop,
            error=scorer.error(final),
        ),
        layers={
            layer: LayerChoice(
                precision=fallback if layer in reasons else kind,
                error=errors.get(layer),
                lowering=(lowerings or {}).get(layer),
                reason=reasons.get(layer),
            )
            for layer in layers
        },
        tensors={
            name: TensorRange(low=found.low, high=found.high, amax=found.amax, scale=scale_of(found.amax))
            for name, found in ranges.items()
        },
    )


def apply_calibration(
    model: ir.Model, calibration: Calibration, *, variant: QdqVariant, fallback: str, keep_io: bool = True
) -> ir.Model:
    """Return the planned graph with the Q/DQ pairs of a calibration, and the other layers in the fallback's type.

    Args:
        model: the planned graph in float32.
        calibration: a calibration made for this graph.
        variant: the Q/DQ variant.
        fallback: fp32, or fp16 for a mixed graph of INT8 (or FP8) and FP16.
        keep_io: whether inputs and outputs stay float32 if the fallback is fp16.

    Raises:
        InputError: the calibration names layers that the graph does not have, or lacks a layer or tensor of the graph.
    """
    from trtkp.graph.passes.precision import to_float16

    layers = {site.layer for site in find_sites(model)}
    unknown = sorted(set(calibration.layers) - layers)
    missing = sorted(layers - set(calibration.layers))
    if unknown or missing:
        text = f"names {unknown[0]}, which the model lacks" if unknown else f"lacks the layer {missing[0]}"
        raise InputError(f"the calibration is for another model: it {text}", remedy="calibrate this one with --data")
    placement: Placement = place(model, variant, calibration.quantised)
    lacking = [name for name in placement.tensors if name not in calibration.tensors]
    if lacking:
        raise InputError(
            f"the calibration has no range for tensor {lacking[0]}",
            remedy="it was made for another backend or another plan of the model: calibrate again with --data",
        )
    if fallback == "fp16":
        model = to_float16(model, keep_io=keep_io)
    amax = {name: found.amax for name, found in calibration.tensors.items()}
    return insert(model, placement, amax, calibration.kind)


def _always_zero(model: ir.Model, layers: list[str], amax: Mapping[str, float]) -> dict[str, str]:
    """Layers whose input is zero on all samples, with the reason: such a tensor has no range to quantise."""
    silent = {name for name, magnitude in amax.items() if magnitude == 0}
    if not silent:
        return {}
    return {
        layer: f"its input {tensor} is always zero on this data"
        for layer in layers
        for pair in place(model, "explicit", [layer]).pairs
        for tensor in [pair.range_of]
        if tensor in silent
    }
