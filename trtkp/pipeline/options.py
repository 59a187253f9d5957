"""The options of a build, and which of them cannot go together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from trtkp.calib.options import CalibrationOptions
from trtkp.engine import BACKENDS
from trtkp.engine.options import DeviceNumber, Threads, TrtOptions
from trtkp.errors import InputError, JobError
from trtkp.machine.gpu import check_gpu
from trtkp.model.options import Arch, InputShape, MaxShapes, MinShapes, OptShapes, TrustPickle
from trtkp.pruning.options import Include, Skip
from trtkp.settings import Setting, check

if TYPE_CHECKING:
    from trtkp.engine import Backend

__all__ = ["PRECISIONS", "BuildOptions", "TimingCache", "check_buildable", "check_device"]

PRECISIONS = ("fp32", "fp16", "int8", "fp8")

TimingCache: TypeAlias = Annotated[
    bool,
    Setting(
        "Read times of layers and tactics from the user's cache, and keep new ones there; TRTKP_CACHE_DIR moves it.",
        group="Engine",
    ),
]


@dataclass(frozen=True)
class BuildOptions:
    """How to build a bundle.

    Raises:
        InputError: a value of another type or out of its bounds.
    """

    backend: Annotated[
        str,
        Setting(
            f"auto (the best that runs here), or one of {', '.join(BACKENDS)}.",
            short="-b",
            group="Engine",
            essential=True,
        ),
    ] = "auto"
    precision: Annotated[
        str,
        Setting(
            "fp32 or fp16; int8 or fp8 with --data or --calibration.",
            choices=PRECISIONS,
            short="-p",
            group="Engine",
            essential=True,
        ),
    ] = "fp32"
    keep_io: Annotated[
        bool,
        Setting(
            "Make inputs and outputs fp16 too where the precision is fp16.",
            flag="--convert-io",
            negated=True,
            group="Engine",
        ),
    ] = True
    min: MinShapes = ()
    opt: OptShapes = ()
    max: MaxShapes = ()
    input_shape: InputShape = ()
    targets: Annotated[
        Sequence[str],
        Setting(
            "GPU architecture of a tensorrt-rtx engine, such as sm86; repeatable.",
            metavar="sm86",
            flag="--target",
            group="Engine",
        ),
    ] = ()
    lowering: Annotated[
        str,
        Setting(
            "How pruned layers are computed: auto chooses for each layer, or the name of one lowering for every layer "
            "that can take it.",
            group="Engine",
        ),
    ] = "auto"
    include: Include = ()
    skip: Skip = ()
    device: DeviceNumber = 0
    threads: Threads = None
    timing_cache: TimingCache = True
    measure: Annotated[
        bool,
        Setting("Time the lowerings of layers where the engine can run here; otherwise predict.", group="Engine"),
    ] = True
    plugins: Annotated[bool, Setting("Let trtkp's plugins compute layers where that is faster.", group="TensorRT")] = (
        True
    )
    level: Annotated[
        int | None,
        Setting("Optimisation level of the builder.", ge=0, le=5, default="the library's", group="TensorRT"),
    ] = None
    tensorrt: TrtOptions = field(default_factory=TrtOptions)
    arch: Arch = None
    trust_pickle: TrustPickle = False
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    calibration_file: Annotated[
        str | PathLike[str] | None,
        Setting(
            "Take ranges and precisions from this calibration.json, or from the bundle that holds one.",
            flag="--calibration",
            group="Calibration",
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)

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
        InputError: options that exclude each other, or one that the backend does not have.
        JobError: the backend cannot build here.
    """
    from trtkp.plan.lowerings import LOWERINGS, PLUGIN  # imports the graph's libraries, which the help does without

    if options.lowering not in ("auto", PLUGIN, *LOWERINGS):
        known = ", ".join(("auto", *LOWERINGS, PLUGIN))
        raise InputError(f"--lowering {options.lowering}: not known", remedy=f"use one of {known}")
    if options.kind is None and options.calibration_file is not None:
        raise InputError(f"--calibration has no effect with --precision {options.precision}", remedy="use int8 or fp8")
    if options.kind is not None:
        backend.check_quantisable(options.kind, options.targets)
        if not has_data and options.calibration_file is None:
            raise InputError(
                f"--precision {options.kind} needs samples of real inputs to calibrate with",
                remedy="give --data, or --calibration with an older calibration.json",
            )
    if not backend.compiles and (options.tensorrt != TrtOptions() or options.level is not None):
        raise InputError(
            f"options of TensorRT's builder mean nothing to backend {backend.name}", remedy="use -b tensorrt"
        )
    check_device(backend, options.device)
    if options.targets and not backend.takes_targets:
        raise InputError(
            f"backend {backend.name} has no option --target {options.targets[0]}", remedy="use -b tensorrt-rtx"
        )
    for target in options.targets:  # which of them exist, the library knows
        if not re.fullmatch(r"sm\d{2,3}|current", target.lower()):
            raise InputError(f"--target {target}: not an architecture", remedy="write it as sm89")
    found = backend.availability(options.device)
    if not found.can_build:
        raise JobError(f"backend {backend.name} cannot build here: {found.detail}", remedy="see trtkp doctor")


def check_device(backend: Backend, device: int) -> None:
    """Refuse the number of a GPU that is not here, or that the backend has no use for.

    Raises:
        InputError: there is no such GPU, or the backend builds for the CPU.
    """
    check_gpu(device)
    if device and not backend.compiles:
        raise InputError(f"--device {device} means nothing to backend {backend.name}", remedy="use -b tensorrt")
