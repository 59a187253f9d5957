"""``trtkp calibrate``: a quantised bundle from one in floating point, or straight from a model."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtkp.bundle import Bundle, Manifest, load
from trtkp.bundle.calibration import load_calibration
from trtkp.bundle.manifest import MANIFEST
from trtkp.bundle.pruned import is_pruned
from trtkp.calib.options import CalibrationOptions
from trtkp.data.labelled import LabelledData, check_labels
from trtkp.engine import get_backend
from trtkp.errors import InputError, JobError
from trtkp.pipeline.build import Build, Start, build
from trtkp.pipeline.draft import Draft, Graphs
from trtkp.pipeline.job import Job, Phases, Progress, SinglePhase
from trtkp.pipeline.options import BuildOptions, check_device
from trtkp.pipeline.quantised import read_samples
from trtkp.shapes import Profile, ShapeRange

if TYPE_CHECKING:
    from trtkp.bundle.calibration import Calibration
    from trtkp.data.samples import Samples

__all__ = ["FromBundle", "calibrate"]


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
    """Quantise a bundle to 8 bits, or build a quantised one from a model whose zeros are packed as they are.

    A bundle keeps its plan, its backend and its targets: only pairs of QuantizeLinear and DequantizeLinear are added,
    and the engine is built again. Layers that cost too much accuracy stay in floating point.

    Args:
        source: an fp32 bundle or its directory, or a model file as `trtkp.build` takes it.
        output: directory of the new bundle, which may be that of the old one.
        data: inputs [N, ...] to calibrate with, and labels [N] where there are any: arrays, or a path that
            `trtkp.data.samples.load_samples` reads. Needed unless ``calibration_file`` is given.
        kind: ``int8``, or ``fp8``, which only TensorRT knows.
        calibration: calibrator, number of samples, accuracy that may be lost; None for the defaults.
        calibration_file: a ``calibration.json``, or a bundle that holds one, whose ranges and precisions are used.
        options: for a model: backend, shapes and so on; of a bundle only ``device`` and ``threads`` count.
        progress: called with a phase, the steps done and the steps in all.

    Returns:
        The quantised bundle, with its files checked.

    Raises:
        InputError: an option or the data cannot be used, or the bundle is not in fp32; nothing was written.
        JobError: the calibration or the build of the engine failed; nothing was written.

    Example:
        >>> import trtkp
        >>> bundle = trtkp.calibrate("kep", "kep-int8", data="samples.npz")
        >>> bundle.manifest.precision, bundle.manifest.quantisation.scores.samples
        ('int8', 24)
    """
    asked = replace(
        options or BuildOptions(),
        precision=kind,
        calibration=calibration or CalibrationOptions(),
        calibration_file=calibration_file,
    )
    if not isinstance(source, Bundle) and not (Path(source).is_dir() and (Path(source) / MANIFEST).exists()):
        return build(source, output, method="from-zeros", options=asked, data=data, progress=progress)
    if not isinstance(source, Bundle) and is_pruned(Path(source)):
        return build(source, output, options=asked, data=data, progress=progress)
    bundle = source if isinstance(source, Bundle) else load(source)
    return _from_bundle(bundle, Path(output), data, _options(bundle.manifest, asked), progress)


def _from_bundle(
    bundle: Bundle,
    output: Path,
    data: LabelledData | str | PathLike[str] | None,
    options: BuildOptions,
    progress: Progress | None,
) -> Bundle:
    """Check that the bundle can be quantised here, read samples and calibration, and build."""
    manifest, kind = bundle.manifest, options.kind
    assert kind is not None
    if manifest.precision != "fp32":
        raise InputError(
            f"is a bundle in {manifest.precision}, but ranges are measured in fp32", file=bundle.path,
            remedy="build it with --precision fp32, or calibrate the model itself",
        )  # fmt: skip
    if manifest.tensorrt is not None and manifest.tensorrt.plugin_layers:
        raise InputError(
            f"{manifest.tensorrt.plugin_layers} of its layers are plugins, which compute in floating point",
            file=bundle.path,
            remedy="build it with --no-plugins, or calibrate the model itself",
        )
    backend = get_backend(manifest.backend)
    backend.check_quantisable(kind, manifest.targets)
    check_device(backend, options.device)
    found = backend.availability(options.device)
    if not found.can_build:
        raise JobError(f"backend {backend.name} cannot build here: {found.detail}", remedy="see trtkp doctor")
    profile = {
        name: ShapeRange(*(tuple(limits[which]) for which in ("min", "opt", "max")))
        for name, limits in manifest.profile.items()
    }
    samples = read_samples(data, profile, options.calibration) if data is not None else None
    if samples is not None:
        check_labels(samples.labels, manifest.outputs[0].shape, None if isinstance(data, LabelledData) else data)
    given = load_calibration(options.calibration_file) if options.calibration_file is not None else None
    job = Job(bundle.path, output, backend, options, progress)
    return Build(job, FromBundle(bundle, profile, samples, given)).run()


def _options(manifest: Manifest, asked: BuildOptions) -> BuildOptions:
    """The bundle's backend and targets, and the requested precision, calibration, GPU and threads.

    Options of TensorRT's builder get their defaults, and its timing cache is neither read nor written.
    """
    # for FP8 the backend chooses targets again: FP8 begins with sm89, and the bundle's targets may be older
    targets = tuple(manifest.targets) if asked.kind == "int8" else ()
    return BuildOptions(
        backend=manifest.backend,
        precision=asked.precision,
        keep_io=manifest.keep_io,
        targets=targets,
        device=asked.device,
        threads=asked.threads,
        timing_cache=False,
        calibration=asked.calibration,
        calibration_file=asked.calibration_file,
    )


@dataclass(frozen=True)
class FromBundle(Start):
    """A build that starts from an fp32 bundle and keeps its graphs, its plan and the rest of its manifest.

    Attributes:
        bundle: the fp32 bundle.
        profile: smallest, usual and largest shape of every input.
        samples: samples to calibrate with; None without data.
        calibration: ranges and precisions to use as they are; None to measure them.
    """

    bundle: Bundle
    profile: Profile
    samples: Samples | None
    calibration: Calibration | None

    def phases(self, job: Job, staging: Path) -> Phases:
        """See `Start`."""
        return SinglePhase("calibrate", job.path)

    def begin(self, job: Job, staging: Path, phase: Phases) -> tuple[Draft, Graphs]:
        """See `Start`."""
        import onnx_ir as ir

        bundle, manifest = self.bundle, self.bundle.manifest
        shutil.copy2(bundle.file("index_sets.safetensors"), staging)
        # load all weights now: the new bundle may replace this one
        packed, engine = (
            ir.external_data.load_to_model(ir.load(bundle.file(name))) for name in ("model.onnx", "engine.onnx")
        )
        file = bundle.path.absolute().resolve() / manifest.source.file
        source = manifest.source.model_copy(update={"file": _relative(file, job.output)})
        draft = Draft(
            manifest=manifest.model_copy(update={"source": source}),
            profile=self.profile,
            samples=self.samples,
            calibration=self.calibration,
            lowerings={layer.name: layer.lowering for layer in manifest.layers if layer.lowering is not None},
            plugins=None,
            reference=bundle.file("engine.onnx"),
        )
        return draft, Graphs(packed, engine)


def _relative(file: Path, output: Path) -> str:
    """The path relative to the new bundle, as the manifest records it."""
    return os.path.relpath(os.path.normpath(file), output.absolute().parent.resolve() / "bundle")
