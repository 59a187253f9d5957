"""Options for building and running engines that TensorRT and TensorRT-RTX share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from trtkp.errors import InputError
from trtkp.settings import Setting, check

__all__ = ["HARDWARE_LEVELS", "DeviceNumber", "HardwareLevel", "RunOptions", "Threads", "TrtOptions"]

HardwareLevel: TypeAlias = Literal["none", "ampere+", "same-compute-capability"]

#: The command line's name of a level, and the member of TensorRT's ``HardwareCompatibilityLevel``.
HARDWARE_LEVELS: dict[str, str] = {
    "none": "NONE",
    "ampere+": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}

DeviceNumber: TypeAlias = Annotated[
    int,
    Setting("Number of the GPU, of those that CUDA_VISIBLE_DEVICES leaves; the CPU has none.", ge=0, group="Engine"),
]

Threads: TypeAlias = Annotated[
    int | None,
    Setting("CPU threads of ONNX Runtime.", ge=1, default="physical cores", group="Engine"),
]


@dataclass(frozen=True)
class TrtOptions:
    """Options of TensorRT's builder. An option that the installed library does not support is an error, never ignored.

    ``timing_cache`` is the directory of the timing caches, one file per library, version and GPU; None for no cache.
    The build sets it.

    Raises:
        InputError: the level is unknown, the workspace is below 1 MiB, or there is no runtime to leave out.
    """

    timing_cache: Path | None = None
    workspace_mib: Annotated[
        int | None,
        Setting(
            "Most memory that a tactic may work in, in MiB.",
            ge=1,
            default="the library's",
            flag="--workspace",
            group="TensorRT",
        ),
    ] = None
    tune_batches: Annotated[
        tuple[int, ...],
        Setting(
            "Batch sizes to tune for, each with an optimisation profile that serves the sizes down to the next smaller "
            "one; the batch of --max is always among them.",
            ge=1,
            default="the size of --opt alone",
            group="TensorRT",
        ),
    ] = ()
    version_compatible: Annotated[
        bool,
        Setting("Build an engine that later minor versions run too; it carries its own runtime.", group="TensorRT"),
    ] = False
    exclude_lean_runtime: Annotated[
        bool,
        Setting(
            "Leave the runtime out of a --version-compatible engine: smaller, and a later version needs the package "
            "tensorrt-lean of the version that built it.",
            group="TensorRT",
        ),
    ] = False
    hardware_compatible: Annotated[
        HardwareLevel,
        Setting(
            "GPUs that the engine runs on besides the one it was built on: none, ampere+ or same-compute-capability.",
            group="TensorRT",
        ),
    ] = "none"
    embed_plugins: Annotated[
        bool,
        Setting("Build an engine that carries the plugin library; implies --version-compatible.", group="TensorRT"),
    ] = False
    refit: Annotated[bool, Setting("Build an engine whose weights can be exchanged later.", group="TensorRT")] = False
    strip_weights: Annotated[
        bool,
        Setting(
            "Leave out the weights; whoever opens the engine refits them from engine.onnx. It is as fast as with them, "
            "unless --refit lets other weights take their place.",
            group="TensorRT",
        ),
    ] = False

    def __post_init__(self) -> None:
        check(self)
        if self.exclude_lean_runtime and not (self.version_compatible or self.embed_plugins):
            raise InputError(
                "--exclude-lean-runtime: only a version-compatible engine carries one",
                remedy="add --version-compatible",
            )

    @property
    def carries_code(self) -> bool:
        """Whether the engine may contain host code, which whoever opens it must allow."""
        return self.version_compatible or self.embed_plugins


@dataclass(frozen=True)
class RunOptions:
    """Options for running an engine.

    Attributes:
        contexts: number of execution contexts, which is the number of runs that can be in progress at once.
        graphs: from the second run with the same shapes on, replay the kernels as a CUDA graph.
        allow_host_code: allow engines that contain a plugin library or a runtime; that code runs in this process.
        refit_from: ONNX file of the same graph, whose weights replace the engine's.
        device: number of the GPU among those that this process sees.
    """

    contexts: int = 1
    graphs: bool = False
    allow_host_code: bool = False
    refit_from: Path | None = None
    device: int = 0
