"""How TensorRT builds, and how its engines run: options that TensorRT and TensorRT-RTX share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from trtkp.settings import Setting, check

__all__ = ["HARDWARE_LEVELS", "HardwareLevel", "RunOptions", "Threads", "TrtOptions"]

HardwareLevel: TypeAlias = Literal["none", "ampere+", "same-compute-capability"]

#: Our name of a level to the member of ``HardwareCompatibilityLevel``.
HARDWARE_LEVELS: dict[str, str] = {
    "none": "NONE",
    "ampere+": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}


Threads: TypeAlias = Annotated[
    int | None,
    Setting("CPU threads of ONNX Runtime.", ge=1, default="physical cores", group="Engine"),
]


@dataclass(frozen=True)
class TrtOptions:
    """Options of TensorRT's builder; what an installed library does not know is refused, never left out in silence.

    ``timing_cache`` is the folder of the caches of tactics' times, one for each library, version and GPU; None for
    none. The build sets it.

    Raises:
        InputError: an unknown level, or a workspace below 1 MiB.
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
    version_compatible: Annotated[
        bool,
        Setting("Build an engine that later minor versions run too; it carries its own runtime.", group="TensorRT"),
    ] = False
    hardware_compatible: Annotated[
        HardwareLevel,
        Setting(
            "GPUs that the engine runs on besides the one at hand: none, ampere+ or same-compute-capability.",
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
        Setting("Leave out the weights that can be refitted from engine.onnx; implies --refit.", group="TensorRT"),
    ] = False

    def __post_init__(self) -> None:
        check(self)

    @property
    def carries_code(self) -> bool:
        """Whether the engine holds code of the host, which whoever opens it must allow."""
        return self.version_compatible or self.embed_plugins


@dataclass(frozen=True)
class RunOptions:
    """Of an opened engine.

    Attributes:
        contexts: execution contexts, so many runs at a time.
        graphs: replay a run's kernels as a CUDA graph, from the second run at the same shapes on.
        allow_host_code: load engines that carry a plugin library or a runtime, which run as part of this process.
        refit_from: ONNX file of the same graph, whose weights take the place of the engine's.
    """

    contexts: int = 1
    graphs: bool = False
    allow_host_code: bool = False
    refit_from: Path | None = None
