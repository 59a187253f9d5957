"""Load the plugin library into TensorRT, check that the parser used it, and keep it away from TensorRT-RTX."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from trtkp.errors import JobError

__all__ = ["NAMESPACE", "check_plugin_layers", "is_rtx", "load_plugins", "plugin_layers", "refuse_plugins"]

#: Namespace of trtkp's plugin creators. The parser looks up a node's plugin by the node's domain, so they are equal.
NAMESPACE = "trtkp"


def is_rtx(trt: Any) -> bool:
    """Whether a module is TensorRT-RTX. Only that library has ``ComputeCapability``, the architectures to build for."""
    return hasattr(trt, "ComputeCapability")


def our_creators(trt: Any) -> list[str]:
    """Names of trtkp's plugin creators that are registered in this process."""
    return [c.name for c in trt.get_plugin_registry().all_creators if c.plugin_namespace == NAMESPACE]


def refuse_plugins(trt: Any) -> None:
    """Refuse to build with TensorRT-RTX in a process where trtkp's plugins are registered.

    Its parser would create the plugin, and the process would abort in ``addPluginV3`` (observed with 1.7.1).

    Raises:
        JobError: the plugins are registered.
    """
    names = our_creators(trt) if is_rtx(trt) else []
    if names:
        raise JobError(
            f"the plugin library is loaded ({names[0]} is registered), but TensorRT-RTX supports no plugins",
            remedy="do not preload libtrtkp_register.so",
        )


def load_plugins(trt: Any, library: Path, logger: Any) -> None:
    """Register the plugins of a library, unless they are registered already.

    Raises:
        JobError: TensorRT cannot load the library; the message holds TensorRT's own words.
    """
    if our_creators(trt):
        return  # load_library would return None, as for a library that cannot be loaded
    mark = logger.mark()
    if trt.get_plugin_registry().load_library(str(library)) is None or not our_creators(trt):
        raise JobError(
            f"TensorRT cannot load the plugin library: {logger.since(mark) or _why_not_loaded(library)}",
            file=library,
            remedy="build it for this machine, see docs/architecture/plugins.md",
        )


def _why_not_loaded(library: Path) -> str:
    """Ask the dynamic linker why. TensorRT's registry logs nothing before a builder or runtime has set a logger."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return "it contains no plugins of trtkp"


def plugin_layers(network: Any) -> list[str]:
    """Names of the network's plugin layers."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [layer.name for layer in layers if layer.type.name.startswith("PLUGIN")]


def check_plugin_layers(network: Any, wanted: int, onnx: Path) -> int:
    """Check that every operator planned as a plugin became a plugin layer.

    Where the parser finds no plugin, it expands the operator's function body instead. The engine would be correct, but
    slower than planned.

    Returns:
        The number of plugin layers.

    Raises:
        JobError: the parser expanded function bodies.
    """
    found = plugin_layers(network)
    if len(found) != wanted:
        raise JobError(
            f"the graph has {wanted} operators of domain {NAMESPACE}, but the network has {len(found)} plugin layers",
            file=onnx,
            remedy="use TensorRT 10.7 or later, which supports plugin_namespace, or build with --no-plugins",
        )
    return len(found)
