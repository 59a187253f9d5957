"""The options of a build, and what cannot be right about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal

from trtkp.calib.options import CalibrationOptions
from trtkp.engine import Backend
from trtkp.engine.options import TrtOptions
from trtkp.errors import InputError, JobError

__all__ = ["BuildOptions", "check_buildable"]


@dataclass(frozen=True)
class BuildOptions:
    """How to build; every field is an option of ``trtkp build``.

    Attributes:
        backend: onnxruntime, tensorrt-rtx, tensorrt, or auto for the best one that can run here.
        precision: fp32, fp16, int8 or fp8; the last two need data or a calibration.
        keep_io: graph inputs and outputs stay fp32 when the precision (or the fallback of int8 and fp8) is fp16.
        min: smallest shapes, as ``["1x3x224x224"]`` or ``["image:1x3x224x224"]``.
        opt: usual shapes; plans are made for these.
        max: largest shapes.
        input_shape: shapes of a model whose file knows none; of dynamic dimensions, the usual ones.
        targets: GPU architectures of a TensorRT-RTX engine, such as ``("sm86", "sm89")``.
        lowering: ``auto``, or the form that every layer takes where it applies.
        include: patterns of the layers to prune, instead of the method's default scope.
        skip: patterns of layers to leave dense.
        threads: CPU threads of ONNX Runtime; None for the physical cores.
        timing_cache: take and keep the times of layers and of TensorRT's tactics in the user's cache; else time anew.
        measure: time the forms of layers where the engine can run here; else predict.
        plugins: let TensorRT engines compute layers with our plugins.
        level: effort of TensorRT's builder, 0 to 5; None for its default.
        tensorrt: what TensorRT and TensorRT-RTX take besides.
        arch: ``package.module:factory`` of a state dict's network.
        trust_pickle: allow model files that are code.
        calibration: how to calibrate for int8 or fp8.
        calibration_file: a ``calibration.json``, or a bundle with one, whose ranges and precisions are taken instead.
    """

    backend: str = "auto"
    precision: str = "fp32"
    keep_io: bool = True
    min: Sequence[str] = ()
    opt: Sequence[str] = ()
    max: Sequence[str] = ()
    input_shape: Sequence[str] = ()
    targets: Sequence[str] = ()
    lowering: str = "auto"
    include: Sequence[str] = ()
    skip: Sequence[str] = ()
    threads: int | None = None
    timing_cache: bool = True
    measure: bool = True
    plugins: bool = True
    level: int | None = None
    tensorrt: TrtOptions = field(default_factory=TrtOptions)
    arch: str | None = None
    trust_pickle: bool = False
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    calibration_file: str | PathLike[str] | None = None

    @property
    def kind(self) -> Literal["int8", "fp8"] | None:
        """The 8-bit type that was asked for."""
        return self.precision if self.precision in ("int8", "fp8") else None  # type: ignore[return-value]  # narrowed

    @property
    def floating(self) -> str:
        """The precision of the graph before anything is quantised."""
        return "fp32" if self.kind else self.precision


def check_buildable(backend: Backend, options: BuildOptions, *, has_data: bool) -> None:
    """Refuse options that cannot be right, before anything is loaded.

    Raises:
        InputError: an option of a wrong value, or one that the backend does not have.
        JobError: the backend cannot build here.
    """
    if options.precision not in ("fp32", "fp16", "int8", "fp8"):
        raise InputError(f"--precision {options.precision}: not known", remedy="use fp32, fp16, int8 or fp8")
    if options.kind is None and options.calibration_file is not None:
        raise InputError(f"--calibration means nothing to --precision {options.precision}", remedy="use int8 or fp8")
    if options.kind is not None:
        backend.check_quantisable(options.kind, options.targets)
        options.calibration.check()
        if not has_data and options.calibration_file is None:
            raise InputError(
                f"--precision {options.kind} needs samples of real inputs to calibrate with",
                remedy="give --data, or --calibration with an older calibration.json",
            )
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads}: at least one is needed")
    options.tensorrt.check()
    if not backend.compiles and (options.tensorrt != TrtOptions() or options.level is not None):
        raise InputError(
            f"options of TensorRT's builder mean nothing to backend {backend.name}", remedy="use -b tensorrt"
        )
    if options.level is not None and not 0 <= options.level <= 5:
        raise InputError(f"--level {options.level}: not an effort of TensorRT's builder", remedy="use 0 to 5")
    if options.targets and not backend.takes_targets:
        raise InputError(
            f"--target {options.targets[0]} means nothing to backend {backend.name}", remedy="use -b tensorrt-rtx"
        )
    for target in options.targets:  # which of them exist, the library knows
        if not re.fullmatch(r"sm\d{2,3}|current", target.lower()):
            raise InputError(f"--target {target}: not an architecture", remedy="write it as sm89")
    found = backend.availability()
    if not found.can_build:
        raise JobError(f"backend {backend.name} cannot build here: {found.detail}", remedy="see trtkp doctor")
