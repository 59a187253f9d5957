"""The plugin library in a process of TensorRT: loaded, counted, and kept away from TensorRT-RTX."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from trtkp.errors import JobError

__all__ = ["NAMESPACE", "check_plugin_layers", "is_rtx", "load_plugins", "plugin_layers", "refuse_plugins"]

#: Namespace of our creators, which is the domain of our operators too.
NAMESPACE = "trtkp"


def is_rtx(trt: Any) -> bool:
    """Whether a module is TensorRT-RTX: it alone names the architectures that it builds for."""
    return hasattr(trt, "ComputeCapability")


def our_creators(trt: Any) -> list[str]:
    """Names of the operators that are registered."""
    return [c.name for c in trt.get_plugin_registry().all_creators if c.plugin_namespace == NAMESPACE]


def refuse_plugins(trt: Any) -> None:
    """RTX's parser would create our plugin and the process would then abort in ``addPluginV3`` (tried on 1.7.1)."""
    names = our_creators(trt) if is_rtx(trt) else []
    if names:
        raise JobError(
            f"the plugin library is loaded ({names[0]} is registered), and TensorRT-RTX takes no plugins",
            remedy="do not preload libtrtkp_register.so",
        )


def load_plugins(trt: Any, library: Path, logger: Any) -> None:
    """Register the plugins of a library, unless they are there already.

    Raises:
        JobError: TensorRT cannot load it; with its own words.
    """
    if our_creators(trt):
        return  # loadLibrary would answer null
    mark = logger.mark()
    if trt.get_plugin_registry().load_library(str(library)) is None or not our_creators(trt):
        raise JobError(
            f"TensorRT cannot load the plugin library: {logger.since(mark) or _why_not_loaded(library)}",
            file=library,
            remedy="build it for this machine, see docs/architecture/plugins.md",
        )


def _why_not_loaded(library: Path) -> str:
    """The system's own words: a registry that no builder or runtime gave a logger yet says nothing."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return "it holds no plugins"


def plugin_layers(network: Any) -> list[str]:
    """Names of the network's plugin layers."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [layer.name for layer in layers if layer.type.name.startswith("PLUGIN")]


def check_plugin_layers(network: Any, wanted: int, onnx: Path) -> int:
    """Every operator that was planned as a plugin has to be one: else the engine would silently be slow.

    Raises:
        JobError: the parser took functions' bodies instead.
    """
    found = plugin_layers(network)
    if len(found) != wanted:
        raise JobError(
            f"the graph has {wanted} operators of domain {NAMESPACE}, the parsed network {len(found)} plugin layers",
            file=onnx,
            remedy="use a TensorRT that knows plugin_namespace (10.7 or later), or build with --no-plugins",
        )
    return len(found)
