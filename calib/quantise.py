"""Calibrate a planned graph: samples → ranges → sensitivity → mixed graph, and the record of all of it."""

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
from trtkp.calib.sensitivity import Scorer, send_back
from trtkp.data.samples import Samples, check_samples
from trtkp.engine import Backend
from trtkp.engine.base import QuantisedForm, fuses_qdq
from trtkp.errors import InputError
from trtkp.machine.timing import Timing
from trtkp.plan.planner import NET_BUDGET_S
from trtkp.plan.race import race
from trtkp.shapes import Profile

__all__ = ["Quantised", "apply_calibration", "calibrate_graph", "quantise"]

#: Samples that each layer alone is tried on.
_SENSITIVITY_SAMPLES = 32

#: Samples that a bundle keeps for `trtkp verify`.
_KEPT_SAMPLES = 4

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quantised:
    """What became of a planned graph.

    Attributes:
        engine: with Q/DQ pairs, the rest in the fallback's type.
        calibration: how.
        samples: a few inputs [N, ...] whose values lie in the ranges; None where there was no data.
        floating: time of the planned graph before, where it could be timed.
        quantised: time of `engine` beside it.
        notes: one line each.
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
    """Quantise a planned graph, and put scales on the packed operators of its other form.

    Args:
        packed: ``model.onnx``, float32; nodes of quantised layers get their scales (`scales.attach_scales`).
        planned: ``engine.onnx``, float32; not changed.
        profile: of the inputs.
        options: see there.
        kind: int8 or fp8.
        backend: decides the form of the graph and the usual fallback.
        samples: to calibrate with.
        calibration: ranges and precisions to take as they are, instead of calibrating.
        keep_io: with fp16 as fallback, inputs and outputs stay float32.
        lowerings: form of every packed layer by name, to be kept in the record.
        threads: of ONNX Runtime.
        state: file for the state of an interrupted calibration.
        progress: called as the work goes on.

    Raises:
        InputError: neither samples nor a calibration, one that does not fit, or a type that the backend has not.
        JobError: NaN or infinity inside the net.
    """
    backend.check_quantisable(kind)
    form, fallback = backend.quantised_form, options.fallback or backend.usual_fallback
    notes = []
    if calibration is None:
        if samples is None:
            raise InputError(
                f"--precision {kind} needs samples of real inputs to calibrate with",
                remedy="give --data, or --calibration with an older calibration.json",
            )
        calibration = calibrate_graph(
            planned, samples, profile, options, form=form, kind=kind, fallback=fallback, lowerings=lowerings,
            threads=threads, state=state, progress=progress,
        )  # fmt: skip
        if len(samples.inputs) == 1:
            notes.append("calibrated on one sample: other inputs may lie beyond its ranges")
        elif not np.ptp(samples.inputs, axis=0).any():
            notes.append("calibrated on copies of one sample: other inputs may lie beyond its ranges")
    else:
        if calibration.kind != kind:
            raise InputError(f"the calibration is for {calibration.kind}, not {kind}", remedy="calibrate again")
        layers = {
            name: choice.model_copy(update={} if choice.precision == kind else {"precision": fallback})
            for name, choice in calibration.layers.items()
        }
        calibration = calibration.model_copy(update={"form": form, "fallback": fallback, "layers": layers})
    engine = apply_calibration(planned, calibration, form=form, fallback=fallback, keep_io=keep_io)
    attach_scales(packed, calibration)
    floating = quantised = None
    if backend.runs_on_cpu:
        shapes = {name: limits.opt for name, limits in profile.items()}
        times = race({"floating": planned, "quantised": engine}, shapes, threads, NET_BUDGET_S)
        floating, quantised = times["floating"], times["quantised"]
        if quantised.median_ms > floating.median_ms:
            notes.append(
                f"the {kind} engine took {quantised.median_ms:.3f} ms, the floating-point one "
                f"{floating.median_ms:.3f} ms: it does not pay on this machine"
            )
    few = samples.spread(_KEPT_SAMPLES).inputs if samples is not None else None
    return Quantised(engine, calibration, few, floating, quantised, tuple(notes))


def calibrate_graph(
    model: ir.Model,
    samples: Samples,
    profile: Profile,
    options: CalibrationOptions,
    *,
    form: QuantisedForm,
    kind: Kind = "int8",
    fallback: Literal["fp32", "fp16"] = "fp32",
    lowerings: Mapping[str, str] | None = None,
    threads: int | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Ranges of all tensors, and the precision of every layer.

    Args:
        model: the planned graph, float32.
        samples: shaped like the model's input.
        profile: of the model's only input.
        options: see there.
        form: which tensors are quantised (`placement`).
        kind: int8 or fp8.
        fallback: type of the layers that are not quantised.
        lowerings: form of every packed layer, to be kept in the record.
        threads: of ONNX Runtime.
        state: file for a state to go on from, removed at the end.
        progress: called as the work goes on.

    Raises:
        InputError: bad options, a model of several inputs, or ``max_drop`` for a net that decides no class.
        JobError: NaN or infinity inside the net.
    """
    if len(profile) != 1:
        raise InputError(f"calibration needs a model of one input, this one has {len(profile)}")
    limits = next(iter(profile.values()))
    check_samples(samples, limits.opt[1:])
    measured = samples.spread(options.samples)
    everywhere = place(model, form)
    layers = list(dict.fromkeys(site.layer for site in everywhere.sites))
    if not layers:
        raise InputError("the model has no layer to quantise: no convolution or Gemm of constant weight")
    fused = fuses_qdq(form)
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
        return insert(model, place(model, form, some), amax, kind)

    candidates = [layer for layer in layers if layer not in reasons]
    few = Scorer(model, samples.spread(_SENSITIVITY_SAMPLES), profile, threads, fuse_qdq=fused)
    errors = {}
    for done, layer in enumerate(candidates):
        if progress is not None:
            progress("Trying each layer alone", done, len(candidates))
        errors[layer] = few.error(few.outputs(quantised([layer])))
    by_error = sorted(candidates, key=lambda layer: (-errors[layer], layer))

    scores: dict[tuple[str, ...], float] = {}

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
        back = send_back(by_error, floating, max_drop, lambda some: score(list(some)))
        reasons |= dict.fromkeys(back, f"sent back to keep the drop within {max_drop:g} points")
    kept = [layer for layer in by_error if layer not in reasons]
    final = scorer.outputs(quantised(kept) if kept else model)
    all_score, kept_score = (score(by_error), score(kept)) if floating is not None else (None, None)
    if state is not None:
        state.unlink(missing_ok=True)
    return Calibration(
        kind=kind,
        form=form,
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
    model: ir.Model, calibration: Calibration, *, form: QuantisedForm, fallback: str, keep_io: bool = True
) -> ir.Model:
    """The planned graph with the Q/DQ pairs of a calibration, the rest in the fallback's type.

    Args:
        model: the planned graph, float32.
        calibration: made for it.
        form: which tensors are quantised.
        fallback: fp32, or fp16 for a mixed graph of INT8 (or FP8) and FP16.
        keep_io: with fp16, inputs and outputs of the graph stay float32.

    Raises:
        InputError: the calibration names layers that the graph has not, or lacks one of its tensors.
    """
    from trtkp.graph.passes.precision import to_float16

    layers = {site.layer for site in find_sites(model)}
    unknown = sorted(set(calibration.layers) - layers)
    missing = sorted(layers - set(calibration.layers))
    if unknown or missing:
        text = f"names {unknown[0]}, which the model has not" if unknown else f"says nothing of layer {missing[0]}"
        raise InputError(f"the calibration is for another model: it {text}", remedy="calibrate this one with --data")
    placement: Placement = place(model, form, calibration.quantised)
    lacking = [name for name in placement.tensors if name not in calibration.tensors]
    if lacking:
        raise InputError(
            f"the calibration has no range for tensor {lacking[0]}",
            remedy="it was made for another form or plan of the model: calibrate again with --data",
        )
    if fallback == "fp16":
        model = to_float16(model, keep_io=keep_io)
    amax = {name: found.amax for name, found in calibration.tensors.items()}
    return insert(model, placement, amax, calibration.kind)


def _always_zero(model: ir.Model, layers: list[str], amax: Mapping[str, float]) -> dict[str, str]:
    """Layers that read a tensor which is zero on all samples: it has no scale."""
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
