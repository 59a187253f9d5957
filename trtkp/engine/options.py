"""How TensorRT builds, and how its engines run: options that TensorRT and TensorRT-RTX share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from trtkp.errors import InputError

__all__ = ["HARDWARE_LEVELS", "HardwareLevel", "RunOptions", "TrtOptions"]

HardwareLevel: TypeAlias = Literal["none", "ampere+", "same-compute-capability"]

#: Our name of a level to the member of ``HardwareCompatibilityLevel``.
HARDWARE_LEVELS: dict[str, str] = {
    "none": "NONE",
    "ampere+": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}


@dataclass(frozen=True)
class TrtOptions:
    """Of a build; what an installed library does not know is refused, and never left out in silence.

    Attributes:
        timing_cache: folder of the caches of tactics' times, one for each library, version and GPU; None for none.
        workspace_mib: most memory that a tactic may take for its work; None for the library's default.
        version_compatible: the engine runs in later minor versions too; it carries a runtime of its own.
        hardware_compatible: GPUs that the engine runs on besides the one at hand.
        embed_plugins: the engine carries the plugin library; implies ``version_compatible``, as others carry none.
        refit: weights can be exchanged later.
        strip_weights: the engine holds no weights that can be refitted; implies ``refit``.
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
        """Whether the engine holds code of the host, which whoever opens it must allow."""
        return self.version_compatible or self.embed_plugins

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            InputError: an unknown level, or a workspace below 1 MiB.
        """
        if self.hardware_compatible not in HARDWARE_LEVELS:
            raise InputError(
                f"--hardware-compatible {self.hardware_compatible}: not known",
                remedy=f"use one of {', '.join(HARDWARE_LEVELS)}",
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(f"--workspace {self.workspace_mib}: at least 1 MiB is needed")


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
