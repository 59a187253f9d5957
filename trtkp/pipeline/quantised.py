"""Steps of a quantised build: read samples, write the calibration, check the graph, make the manifest's record."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtkp.bundle.calibration import CALIBRATION, save_calibration
from trtkp.bundle.manifest import QuantisationRecord
from trtkp.bundle.records import timing_record
from trtkp.calib.options import CalibrationOptions
from trtkp.data.labelled import LabelledData, check_data
from trtkp.errors import InputError, JobError
from trtkp.files import replacing
from trtkp.shapes import Profile

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtkp.calib.quantise import Quantised
    from trtkp.data.samples import Samples

__all__ = [
    "check_quantised",
    "quantisation_record",
    "read_samples",
    "save_quantised",
    "state_file",
]


def read_samples(data: LabelledData | str | PathLike[str], profile: Profile, options: CalibrationOptions) -> Samples:
    """Samples from a path or from memory, checked against the model's only input.

    Args:
        data: samples in memory, or a path for `trtkp.data.samples.load_samples`.
        profile: smallest, usual and largest shape of every input.
        options: normalisation of images.

    Raises:
        InputError: the model has several inputs, or the data cannot be used or does not fit the model.
    """
    from trtkp.data.samples import Samples, load_samples

    if len(profile) != 1:
        raise InputError(f"--data needs a model of one input, this one has {len(profile)}")
    if isinstance(data, LabelledData):
        check_data(data, profile)
        return Samples(data.inputs, data.labels)
    shape = next(iter(profile.values())).opt[1:]
    return load_samples(data, shape, mean=options.mean, std=options.std)


def state_file(output: Path) -> Path:
    """The hidden file beside the bundle in which an interrupted calibration keeps its state."""
    return output.absolute().with_name(f".{output.absolute().name}.calibrating.npz")


def save_quantised(result: Quantised, folder: Path) -> None:
    """Write ``calibration.json``, and the few samples that ``trtkp verify`` needs, into an unfinished bundle."""
    from safetensors.numpy import save_file

    save_calibration(result.calibration, folder / CALIBRATION)
    if result.samples is not None:
        with replacing(folder / "samples.safetensors") as part:
            save_file({"inputs": np.ascontiguousarray(result.samples, np.float32)}, part)


def check_quantised(
    result: Quantised, engine: Path, reference: ir.Model, profile: Profile, precision: str, file: Path
) -> None:
    """Compare a quantised graph, as a file, with the dense masked net, on inputs within the calibrated ranges.

    Raises:
        JobError: the outputs differ by more than rounding to 8 bits explains.
    """
    from trtkp.verification.bundle import compare_graphs, inputs_in_range

    ((name, limits),) = profile.items()
    shape = (max(limits.min[0], min(4, limits.max[0])), *limits.min[1:])
    inputs = inputs_in_range(result.calibration, name, shape, 0)
    if result.samples is not None and result.samples.shape[1:] == shape[1:]:
        inputs = np.resize(result.samples.astype(np.float32), shape)
    shapes: Mapping[str, tuple[int, ...]] = {name: shape}
    check = compare_graphs(
        "engine.onnx", engine, reference, shapes, precision, feeds={name: inputs},
        fuse_qdq=result.calibration.fuse_qdq,
    )  # fmt: skip
    if check.status == "failed":
        raise JobError(
            f"the quantised graph differs too much from the one in floating point: {check.summary}", file=file,
            remedy="use another --calibrator, more samples or a smaller --max-drop",
        )  # fmt: skip


def quantisation_record(result: Quantised) -> QuantisationRecord:
    """The manifest's record of a quantisation."""
    calibration = result.calibration
    return QuantisationRecord(
        fallback=calibration.fallback,
        form=calibration.form,
        method=calibration.method,
        percentile=calibration.percentile,
        scores=calibration.scores,
        layers=calibration.layers,
        floating=timing_record(result.floating),
        quantised=timing_record(result.quantised),
    )
