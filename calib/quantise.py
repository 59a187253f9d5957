"""Calibrate a planned graph: samples → ranges → sensitivity → mixed graph, and the record of all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from trtkp.calib.placement import Form, Placement, find_sites, place
from trtkp.calib.qdq import Kind, insert
from trtkp.calib.ranges import METHODS, measure_ranges
from trtkp.calib.record import Calibration, DataRecord, LayerChoice, Scores, TensorRange, scale_of
from trtkp.calib.samples import Samples
from trtkp.calib.sensitivity import Scorer, send_back
from trtkp.errors import InputError
from trtkp.shapes import Profile

__all__ = ["DEFAULT_MAX_DROP", "CalibrationOptions", "apply_calibration", "calibrate"]

#: Points of accuracy that may be lost where nothing else is asked for.
DEFAULT_MAX_DROP = 0.5
#: Samples that each layer alone is tried on.
_SENSITIVITY_SAMPLES = 32

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate; every field is an option of ``trtkp calibrate``.

    Attributes:
        calibrator: min-max, entropy or percentile.
        percentile: of magnitudes, for percentile.
        samples: at most so many samples are measured, spread over the data; accuracy is measured on all.
        max_drop: points of accuracy that may be lost; None: 0.5 where there is a class to decide.
        fallback: type of the layers that are not quantised, fp32 or fp16; None: fp32 for onnxruntime, else fp16.
        mean: of images in 0..1, per channel or one for all.
        std: likewise.
    """

    calibrator: str = "min-max"
    percentile: float = 99.99
    samples: int = 256
    max_drop: float | None = None
    fallback: Literal["fp32", "fp16"] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: an unknown calibrator or fallback, or a number out of range.
        """
        if self.calibrator not in METHODS:
            raise InputError(f"--calibrator {self.calibrator}: not known", remedy=f"use one of {', '.join(METHODS)}")
        if not 0 < self.percentile <= 100:
            raise InputError(f"--percentile {self.percentile:g}: not above 0 and at most 100")
        if self.samples < 1:
            raise InputError(f"--samples {self.samples}: at least one is needed")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f"--max-drop {self.max_drop:g}: not a number of points")
        if self.fallback not in (None, "fp32", "fp16"):
            raise InputError(f"--fallback {self.fallback}: not known", remedy="use fp32 or fp16")


def calibrate(
    model: ir.Model,
    samples: Samples,
    profile: Profile,
    options: CalibrationOptions,
    *,
    form: Form,
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
    options.check()
    if len(profile) != 1:
        raise InputError(f"calibration needs a model of one input, this one has {len(profile)}")
    measured = samples.spread(options.samples)
    limits = next(iter(profile.values()))
    everywhere = place(model, form)
    layers = list(dict.fromkeys(site.layer for site in everywhere.sites))
    if not layers:
        raise InputError("the model has no layer to quantise: no convolution or Gemm of constant weight")
    fused = form == "onnxruntime"
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
    reasons = _always_zero(model, form, layers, amax)

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
    model: ir.Model, calibration: Calibration, *, form: Form, fallback: str, keep_io: bool = True
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
    from trtkp.graph.precision import to_float16

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


def _always_zero(model: ir.Model, form: Form, layers: list[str], amax: Mapping[str, float]) -> dict[str, str]:
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
