"""Load trtkp's and TensorRT's own plugins, check that the parser used ours, and keep ours away from TensorRT-RTX."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from trtkp.errors import JobError

__all__ = [
    "NAMESPACE",
    "check_plugin_layers",
    "init_standard_plugins",
    "is_rtx",
    "load_plugins",
    "plugin_layers",
    "refuse_plugins",
]

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


def init_standard_plugins(trt: Any, logger: Any) -> bool:
    """Register TensorRT's own plugins, such as ROIAlign and EfficientNMS; a second call does nothing.

    The parser needs them for operators that no layer of TensorRT computes, the runtime for engines with such layers.
    The lean runtime has none. TensorRT-RTX 1.7.1 has ROIAlign alone.

    Returns:
        Whether the library has registered them. If not, a graph that needs one is refused in the parser's own words.
    """
    return hasattr(trt, "init_libnvinfer_plugins") and bool(trt.init_libnvinfer_plugins(logger, ""))


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


def plugin_layers(trt: Any, network: Any) -> list[str]:
    """Names of the layers that trtkp's plugins compute. Those of other plugins, such as EfficientNMS, are left out."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [layer.name for layer in layers if _namespace(trt, layer) == NAMESPACE]


def _namespace(trt: Any, layer: Any) -> str | None:
    """Namespace of a layer's plugin; None for other layers, and for plugins of the older interfaces, unlike ours."""
    if layer.type.name != "PLUGIN_V3":
        return None
    # get_layer returns an ILayer whatever the layer is; setting the class is the bindings' way of a downcast.
    layer.__class__ = trt.IPluginV3Layer
    core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    return str(core.plugin_namespace)


def check_plugin_layers(trt: Any, network: Any, wanted: int, onnx: Path) -> int:
    """Check that every operator planned as a plugin became a layer of one of trtkp's plugins.

    Where the parser finds no plugin, it expands the operator's function body instead. The engine would be correct, but
    slower than planned.

    Returns:
        The number of those layers.

    Raises:
        JobError: the parser expanded function bodies.
    """
    found = plugin_layers(trt, network)
    if len(found) != wanted:
        raise JobError(
            f"the graph has {wanted} operators of domain {NAMESPACE}, but the network has {len(found)} layers of "
            "its plugins",
            file=onnx,
            remedy="use TensorRT 10.7 or later, which supports plugin_namespace, or build with --no-plugins",
        )
    return len(found)
