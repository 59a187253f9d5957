"""Measure the ranges of activations on real batches, with onnxruntime's calibrators.

A calibrator runs the graph with the requested tensors as additional outputs, one batch at a time. Per tensor it keeps a
minimum and a maximum (``min-max``) or a histogram (``entropy``, ``percentile``). That is its whole state, so writing it
to a file from time to time lets an interrupted run continue.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from trtkp.calib.options import METHODS
from trtkp.errors import InputError, JobError
from trtkp.files import replacing, writing
from trtkp.graph.save import is_large, save_graph

__all__ = ["Range", "measure_ranges"]

#: Number of bins of a new histogram. The entropy method tries one threshold per bin beyond `_QUANTISED_BINS`, in
#: Python: 2,048 bins would take 16 times as long as 512, whose thresholds are 0.4 % of the range apart.
_BINS = {"entropy": 512, "percentile": 2048}
#: Number of levels with which the entropy method approximates a histogram: those of a signed 8-bit integer.
_QUANTISED_BINS = 256
#: Batches between two writes of the state: a killed run repeats at most seven.
_STATE_EVERY = 8


@dataclass(frozen=True)
class Range:
    """The range of one tensor.

    Attributes:
        low: smallest value seen.
        high: largest value seen.
        amax: magnitude beyond which values are clipped: at most the largest magnitude seen; 0 for a tensor that is
            always zero.
    """

    low: float
    high: float
    amax: float


def measure_ranges(
    model: ir.Model,
    tensors: Sequence[str],
    batches: Iterable[npt.NDArray[Any]],
    *,
    method: str = "entropy",
    percentile: float = 99.99,
    count: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    state: Path | None = None,
    key: str = "",
) -> dict[str, Range]:
    """Measure the range of tensors over all batches.

    Args:
        model: a float32 graph with one input; not changed.
        tensors: names of the tensors.
        batches: inputs [N, ...]. Their order does not influence ``min-max``, and the bins of the others only slightly.
        method: how `Range.amax` is chosen. ``min-max``: the largest magnitude. ``entropy``: the magnitude whose
            clipping gives the smallest Kullback-Leibler divergence of the histogram. ``percentile``: the given
            percentile of the absolute values.
        percentile: percentile of absolute values, above 0 and at most 100.
        count: number of batches, for the progress.
        progress: called with phase, batches done and ``count``.
        state: file for the state. If it exists and has the same ``key``, the measurement continues from it.
        key: identifies the data the state belongs to. Graph, tensors and method are added to it.

    Raises:
        InputError: the method is unknown, the percentile out of range, or there are no batches.
        JobError: a tensor has NaN or infinite values on this data.
    """
    if method not in METHODS:
        raise InputError(f"--calibrator {method}: not known", remedy=f"use one of {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise InputError(f"--percentile {percentile:g}: must be above 0 and at most 100")
    if not tensors:
        return {}
    name = str(model.graph.inputs[0].name)
    digest = _key(model, tensors, method, percentile, key)
    with tempfile.TemporaryDirectory() as folder:
        calibrator = _calibrator(model, tensors, method, percentile, Path(folder))
        done = _restore(calibrator, state, digest)
        seen = 0
        for seen, batch in enumerate(batches, 1):
            if seen <= done:
                continue
            if progress is not None:
                progress("Calibrating", seen - 1, count)
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # the calibrators print their progress
                    calibrator.collect_data(_Once({name: batch}))
            except ValueError as error:  # NumPy makes no histogram of infinite values
                raise JobError(f"calibration failed on batch {seen} ({error})", remedy="check model and data") from None
            _check_finite(calibrator)
            if state is not None and seen % _STATE_EVERY == 0:  # histograms of a large net are megabytes
                _store(calibrator, state, digest, seen)
        if not seen:
            raise InputError("there is no batch for calibration")
        if progress is not None:
            progress("Calibrating", count, count)
        with contextlib.redirect_stdout(io.StringIO()):
            found = calibrator.compute_data().data
    observed = _observed(calibrator)
    return {tensor: _range(observed[tensor], found[tensor].range_value) for tensor in sorted(tensors)}


class _Once:
    """A data reader with a single batch.

    A calibrator stacks all batches of one call, which would require equal sizes and keep everything in memory.
    """

    def __init__(self, feeds: dict[str, npt.NDArray[Any]]) -> None:
        self._feeds: dict[str, npt.NDArray[Any]] | None = feeds

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        feeds, self._feeds = self._feeds, None
        return feeds


def _calibrator(model: ir.Model, tensors: Sequence[str], method: str, percentile: float, folder: Path) -> Any:
    from onnxruntime.quantization import calibrate

    file, augmented = folder / "model.onnx", folder / "augmented.onnx"
    save_graph(model, file)
    common = {"augmented_model_path": str(augmented), "symmetric": True}
    common["use_external_data_format"] = is_large(model)
    calibrator: Any
    match method:
        case "min-max":
            calibrator = calibrate.MinMaxCalibrater(file, **common)
        case "entropy":
            bins = {"num_bins": _BINS[method], "num_quantized_bins": _QUANTISED_BINS}
            calibrator = calibrate.EntropyCalibrater(file, **common, **bins)
        case _:
            bins = {"num_bins": _BINS[method]}
            calibrator = calibrate.PercentileCalibrater(file, **common, **bins, percentile=percentile)
    if method == "min-max":
        calibrator.symmetric = False  # a symmetric one keeps only the magnitude, but the record needs low and high
    # The calibrators choose tensors by operator type. Here the tensors are given, so their selection is replaced, and
    # value_info is completed, where they look up the type of a tensor.
    infos = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors}
    kept = {info.name for info in calibrator.model.graph.value_info}
    outputs = {value.name for value in (*calibrator.model.graph.output, *calibrator.model.graph.input)}
    calibrator.model.graph.value_info.extend(info for name, info in infos.items() if name not in kept | outputs)
    calibrator.select_tensors_to_calibrate = lambda _: (dict.fromkeys(sorted(tensors)), infos)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    return calibrator


def _range(observed: tuple[float, float], chosen: tuple[Any, Any]) -> Range:
    low, high = observed
    largest = max(abs(low), abs(high))
    amax = max(abs(float(np.asarray(value).reshape(()))) for value in chosen)
    # A constant tensor has no usable histogram, and a histogram's last edge can be rounded beyond the largest value.
    if low == high or not 0 < amax <= largest:
        amax = largest
    return Range(low, high, amax)


def _observed(calibrator: Any) -> dict[str, tuple[float, float]]:
    """Smallest and largest value per tensor, read from the calibrator's state."""
    if _is_min_max(calibrator):
        kept = calibrator.calibrate_tensors_range
        pairs = {} if kept is None else {name: data.range_value for name, data in kept.data.items()}
    else:
        kept = calibrator.collector.histogram_dict if calibrator.collector is not None else {}
        pairs = {name: histogram[2:4] for name, histogram in kept.items()}
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in pairs.items()}


def _check_finite(calibrator: Any) -> None:
    for name, pair in _observed(calibrator).items():
        if not np.isfinite(pair).all():
            raise JobError("has NaN or infinite values on this data", layer=name, remedy="check model and data")


def _is_min_max(calibrator: Any) -> bool:
    return hasattr(calibrator, "moving_average")


def _key(model: ir.Model, tensors: Sequence[str], method: str, percentile: float, key: str) -> str:
    digest = sha256(repr((key, sorted(tensors), method, percentile, _BINS, _QUANTISED_BINS)).encode())
    for name in sorted(model.graph.initializers):
        tensor = model.graph.initializers[name].const_value
        digest.update(name.encode())
        digest.update(b"" if tensor is None else tensor.tobytes())
    return digest.hexdigest()


def _store(calibrator: Any, file: Path, key: str, done: int) -> None:
    """Write the calibrator's state as arrays."""
    arrays: dict[str, npt.NDArray[Any]] = {"key": np.array(key), "done": np.array(done)}
    if _is_min_max(calibrator):
        for name, data in calibrator.calibrate_tensors_range.data.items():
            for part, value in enumerate(data.range_value):
                arrays[f"{part}/{name}"] = np.asarray(value)
    else:
        for name, histogram in calibrator.collector.histogram_dict.items():
            for part, value in enumerate(histogram):
                arrays[f"{part}/{name}"] = np.asarray(value)
    with writing(file), replacing(file) as new, new.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # the stub takes a flag of its own for an array


def _restore(calibrator: Any, file: Path | None, key: str) -> int:
    """Restore a stored state. Returns the number of batches it covers; 0 if there is no state with this key."""
    from onnxruntime.quantization import calibrate

    if file is None or not file.is_file():
        return 0
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if str(arrays.pop("key")) != key:
            return 0
        done = int(arrays.pop("done"))
        parts: dict[str, dict[int, Any]] = {}
        for path, array in arrays.items():
            part, _, name = path.partition("/")
            parts.setdefault(name, {})[int(part)] = array if array.ndim else array[()]
    except Exception:  # incomplete, or not such a file: start from the beginning
        return 0
    kept = {name: tuple(values[part] for part in sorted(values)) for name, values in parts.items()}
    if _is_min_max(calibrator):
        calibrator.calibrate_tensors_range = calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, kept)
    else:
        calibrator.collector = calibrate.HistogramCollector(
            calibrator.method, calibrator.symmetric, calibrator.num_bins, calibrator.num_quantized_bins,
            calibrator.percentile, calibrator.scenario,
        )  # fmt: skip
        calibrator.collector.histogram_dict = kept
    return done
