"""TensorRT-RTX inside ONNX Runtime: registers NVIDIA's provider library, and gives it to a session.

The package ``onnxruntime-ep-nv-tensorrt-rtx-cu13`` carries the library, TensorRT-RTX included. On import it loads
240 MB of libraries into the process, so it is imported when a session is opened and not before.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from trtkp.errors import NotRunnableError

__all__ = ["DISTRIBUTIONS", "MODULE", "NOT_INSTALLED", "add_rtx_provider"]

MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
#: The distributions that hold the module.
DISTRIBUTIONS = (
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
)
NOT_INSTALLED = f"package {MODULE} is not installed"

#: ONNX Runtime refuses to register a library twice, even if it listed no device the first time.
_registered: set[str] = set()
_lock = threading.Lock()


def add_rtx_provider(ort: Any, options: Any) -> str:
    """Let a session compute on the first GPU that TensorRT-RTX lists, and nowhere else.

    Args:
        ort: the module ``onnxruntime``.
        options: the session's ``SessionOptions``; they are changed.

    Returns:
        The provider's name, as the opened session lists it.

    Raises:
        NotRunnableError: the package is missing or cannot be loaded, or it lists no GPU.
    """
    try:
        package = importlib.import_module(MODULE)
    except ImportError as error:
        reason = NOT_INSTALLED if error.name == MODULE else f"{MODULE} cannot be imported: {error}"
        raise NotRunnableError(reason, remedy="pip install 'trtkp[ort-rtx]'") from None
    if not hasattr(ort, "register_execution_provider_library"):
        raise NotRunnableError(
            f"onnxruntime {ort.__version__} takes no provider libraries", remedy="pip install 'onnxruntime>=1.24'"
        )
    name: str = package.get_ep_name()
    with _lock:
        devices = _devices(ort, name)
        if not devices and name not in _registered:
            _register(ort, name, package.get_library_path)
            devices = _devices(ort, name)
    if not devices:
        raise NotRunnableError(
            "TensorRT-RTX lists no GPU in ONNX Runtime",
            remedy="use an RTX GPU (sm86, sm89, sm120 or later) and a driver for CUDA 13, or -b onnxruntime",
        )
    # TensorRT-RTX optimises the graph itself. ONNX Runtime would do so first: it may fold the dequantised weights into
    # floating-point ones, after which nothing computes in 8 bits.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # A node that TensorRT-RTX does not take is an error: on the CPU, times would be those of copies to and fro.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(devices[:1], {})
    return name


def _devices(ort: Any, name: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == name]


def _register(ort: Any, name: str, library: Any) -> None:
    try:
        ort.register_execution_provider_library(name, library())
    except Exception as error:  # ONNX Runtime's exceptions have no common base class but Exception
        words = str(error)
        if "libcuda" in words or "libnvidia-ml" in words or "nvcuda" in words:
            raise NotRunnableError(
                "TensorRT-RTX in ONNX Runtime needs NVIDIA's driver, which is not on this machine",
                remedy="install a driver for CUDA 13 or later, or build with -b onnxruntime",
            ) from error
        raise NotRunnableError(
            f"ONNX Runtime cannot load TensorRT-RTX: {words}",
            remedy="reinstall: pip install --force-reinstall --no-deps onnxruntime-ep-nv-tensorrt-rtx-cu13",
        ) from error
    _registered.add(name)
