"""``trtkp calibrate``: a quantised bundle from one in floating point, or straight from a model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtkp.bundle import Bundle, BundleWriter, Manifest, load
from trtkp.bundle.calibration import load_calibration
from trtkp.bundle.manifest import MANIFEST, FileRecord
from trtkp.bundle.pruned import is_pruned
from trtkp.calib.options import CalibrationOptions
from trtkp.engine import BuildRequest, get_backend
from trtkp.errors import InputError, JobError
from trtkp.pipeline.quantised import (
    check_quantisable,
    check_quantised,
    engine_targets,
    quantisation_record,
    read_samples,
    save_quantised,
    state_file,
)
from trtkp.shapes import Profile, ShapeRange

if TYPE_CHECKING:
    from trtkp.data.labelled import LabelledData
    from trtkp.pipeline.options import BuildOptions

__all__ = ["calibrate"]

Progress = Callable[[str, int, int], None]


def calibrate(
    source: str | PathLike[str] | Bundle,
    output: str | PathLike[str],
    *,
    data: LabelledData | str | PathLike[str] | None = None,
    kind: Literal["int8", "fp8"] = "int8",
    calibration: CalibrationOptions | None = None,
    calibration_file: str | PathLike[str] | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Quantise a bundle, or build a quantised one from a model whose zeros are packed as they are.

    A bundle keeps its plan, its backend and its targets: only Q/DQ pairs are added and the engine is built again.

    Args:
        source: an fp32 bundle, or a model file as ``build`` takes it.
        output: directory of the new bundle, which may be that of the old one.
        data: what to calibrate with: see `trtkp.data.samples.load_samples`.
        kind: int8 or fp8.
        calibration: how to calibrate.
        calibration_file: a ``calibration.json``, or a bundle with one, whose ranges and precisions are taken instead.
        options: for a model: backend, shapes and so on; of a bundle only ``threads`` counts.
        progress: called as the work goes on.

    Raises:
        InputError: bad options or data, no such source, or a bundle that is not fp32; nothing was written.
        JobError: calibration or the engine's build failed; nothing was written.
    """
    from trtkp.pipeline.build import build
    from trtkp.pipeline.options import BuildOptions

    how, options = calibration or CalibrationOptions(), options or BuildOptions()
    if not isinstance(source, Bundle) and not (Path(source).is_dir() and (Path(source) / MANIFEST).exists()):
        chosen = replace(options, precision=kind, calibration=how, calibration_file=calibration_file)
        return build(source, output, method="from-zeros", options=chosen, data=data, progress=progress)
    if not isinstance(source, Bundle) and is_pruned(Path(source)):
        chosen = replace(options, precision=kind, calibration=how, calibration_file=calibration_file)
        return build(source, output, options=chosen, data=data, progress=progress)
    bundle = source if isinstance(source, Bundle) else load(source)
    return _requantise(bundle, Path(output), data, kind, how, calibration_file, options.threads, progress)


def _requantise(
    bundle: Bundle,
    output: Path,
    data: LabelledData | str | PathLike[str] | None,
    kind: Literal["int8", "fp8"],
    how: CalibrationOptions,
    calibration_file: str | PathLike[str] | None,
    threads: int | None,
    progress: Progress | None,
) -> Bundle:
    import onnx_ir as ir

    from trtkp.calib.quantise import quantise
    from trtkp.pipeline.records import tensorrt_record
    from trtkp.verification.bundle import check_built, dense_graph

    manifest = bundle.manifest
    if manifest.precision != "fp32":
        raise InputError(
            f"is a bundle in {manifest.precision}: ranges are measured in fp32", file=bundle.path,
            remedy="build it with --precision fp32, or calibrate the model itself",
        )  # fmt: skip
    if manifest.tensorrt is not None and manifest.tensorrt.plugin_layers:
        raise InputError(
            f"{manifest.tensorrt.plugin_layers} of its layers are plugins, which compute in floating point",
            file=bundle.path,
            remedy="build it with --no-plugins, or calibrate the model itself",
        )
    check_quantisable(manifest.backend, kind, manifest.targets)
    backend = get_backend(manifest.backend)
    found = backend.availability()
    if not found.can_build:
        raise JobError(f"backend {backend.name} cannot build here: {found.detail}", remedy="see trtkp doctor")
    profile = {
        name: ShapeRange(*(tuple(limits[which]) for which in ("min", "opt", "max")))
        for name, limits in manifest.profile.items()
    }
    start = time.perf_counter()
    samples = read_samples(data, profile, how) if data is not None else None
    given = load_calibration(calibration_file) if calibration_file is not None else None
    with BundleWriter(output) as writer:
        staging = writer.staging
        packed, planned = (ir.load(bundle.file(name)) for name in ("model.onnx", "engine.onnx"))
        ir.external_data.load_to_model(packed)
        result = quantise(
            packed, planned, profile, how, kind=kind, backend=backend.name, samples=samples, calibration=given,
            keep_io=manifest.keep_io, threads=threads, state=state_file(output), progress=progress,
            lowerings={layer.name: layer.lowering for layer in manifest.layers if layer.lowering is not None},
        )  # fmt: skip
        save_quantised(result, staging)
        check_quantised(result, result.engine, dense_graph(packed), profile, kind, bundle.path)
        shutil.copy2(bundle.file("index_sets.safetensors"), staging)
        for model, name in ((packed, "model.onnx"), (result.engine, "engine.onnx")):
            ir.save(model, staging / name, external_data=f"{name}.data" if _is_large(model) else None)
        request = BuildRequest(
            onnx=staging / "engine.onnx",
            output=staging,
            profile=profile,
            precision=result.calibration.fallback,
            targets=engine_targets(backend.name, kind, _targets(bundle, kind)),
            threads=threads,
        )
        built = backend.build(request, progress)
        check_built(backend, request, built, kind, fuse_qdq=result.calibration.form == "onnxruntime")
        accuracy = _accuracy(staging / "engine.onnx", bundle, samples.labelled if samples else None, result, profile)

        def describe(files: dict[str, FileRecord]) -> Manifest:
            source = bundle.path.absolute().resolve() / manifest.source.file
            return manifest.model_copy(
                update={
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "source": manifest.source.model_copy(update={"file": _relative(source, output)}),
                    "precision": kind,
                    "targets": list(built.targets),
                    "quantisation": quantisation_record(result),
                    "tensorrt": tensorrt_record(request, built) if manifest.tensorrt is not None else None,
                    "accuracy": accuracy,
                    "seconds": manifest.seconds | {"calibrate": round(time.perf_counter() - start, 3)},
                    "warnings": [*manifest.warnings, *result.notes, *built.warnings],
                    "files": files,
                }
            )

        published = writer.publish(describe)
    return Bundle(output, published)


def _accuracy(
    engine: Path, bundle: Bundle, data: LabelledData | None, result: object, profile: Profile
) -> dict[str, float] | None:
    """Accuracy of the old engine's graph and of the quantised one; the dense model's is the old bundle's to know."""
    from trtkp.calib.quantise import Quantised
    from trtkp.engine.accuracy import accuracy
    from trtkp.engine.onnxruntime import OrtRunner

    assert isinstance(result, Quantised)
    if data is None:
        return bundle.manifest.accuracy
    fused = result.calibration.form == "onnxruntime"
    known = bundle.manifest.accuracy or {}
    with OrtRunner(bundle.file("engine.onnx")) as runner:
        floating = accuracy(runner, data, profile)
    with OrtRunner(engine, fuse_qdq=fused) as runner:
        return {"dense": known.get("dense", floating), "pruned": accuracy(runner, data, profile)}


def _targets(bundle: Bundle, kind: str) -> tuple[str, ...]:
    """The old engine's architectures; FP8 chooses anew, as most of the usual ones do not know it."""
    return tuple(bundle.manifest.targets) if kind == "int8" else ()


def _is_large(model: object) -> bool:
    import onnx_ir as ir

    assert isinstance(model, ir.Model)
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None) > 1 << 30


def _relative(file: Path, output: Path) -> str:
    import os

    return os.path.relpath(os.path.normpath(file), output.absolute().parent.resolve() / "bundle")
