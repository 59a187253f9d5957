"""Options for building and running engines that TensorRT and TensorRT-RTX share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from trtkp.errors import InputError

__all__ = ["HARDWARE_LEVELS", "HardwareLevel", "RunOptions", "TrtOptions"]

HardwareLevel: TypeAlias = Literal["none", "ampere+", "same-compute-capability"]

#: The command line's name of a level, and the member of TensorRT's ``HardwareCompatibilityLevel``.
HARDWARE_LEVELS: dict[str, str] = {
    "none": "NONE",
    "ampere+": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}


@dataclass(frozen=True)
class TrtOptions:
    """Options of a build. An option that the installed library does not support is an error, never ignored.

    Attributes:
        timing_cache: directory of the timing caches, one file per library, version and GPU; None for no cache.
        workspace_mib: memory limit in MiB for the workspace of one tactic; None for the library's default.
        version_compatible: the engine also runs in later minor versions; it contains a lean runtime.
        hardware_compatible: other GPUs on which the engine runs.
        embed_plugins: the engine contains the plugin library. Implies ``version_compatible``, because TensorRT embeds
            plugins in version-compatible engines only.
        refit: the weights can be replaced later.
        strip_weights: the engine is stored without its refittable weights; implies ``refit``.
    """

    timing_cache: Path | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: HardwareLevel = "none"
    embed_plugins: bool = False
    refit: bool = False
    strip_weights: bool = False

    @property
    def carries_code(self) -> bool:
        """Whether the engine contains host code, which whoever opens it must allow."""
        return self.version_compatible or self.embed_plugins

    def check(self) -> None:
        """Check the values.

        Raises:
            InputError: an unknown level, or a workspace below 1 MiB.
        """
        if self.hardware_compatible not in HARDWARE_LEVELS:
            raise InputError(
                f"--hardware-compatible {self.hardware_compatible}: no such level",
                remedy=f"use one of {', '.join(HARDWARE_LEVELS)}",
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(f"--workspace {self.workspace_mib}: at least 1 MiB is needed")


@dataclass(frozen=True)
class RunOptions:
    """Options for running an engine.

    Attributes:
        contexts: number of execution contexts, which is the number of runs that can be in progress at once.
        graphs: from the second run with the same shapes on, replay the kernels as a CUDA graph.
        allow_host_code: allow engines that contain a plugin library or a runtime; that code runs in this process.
        refit_from: ONNX file of the same graph, whose weights replace the engine's.
    """

    contexts: int = 1
    graphs: bool = False
    allow_host_code: bool = False
    refit_from: Path | None = None
