"""What an installed TensorRT or TensorRT-RTX knows of trtkp's options.

`trtkp.engine.doctor` runs this module as a process of its own, where all stays that a broken installation prints or
breaks.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from trtkp.engine.trt.log import process_logger
from trtkp.engine.trt.plugins import NAMESPACE, init_standard_plugins, is_rtx

__all__ = ["main", "supported"]


def supported(trt: Any) -> dict[str, bool]:
    """What the library knows, by the words of ``trtkp doctor``.

    What TensorRT-RTX has names for, but ignores or refuses (hardware levels, engines that carry a runtime, plugins of
    other libraries, timing caches), counts as not known.

    Args:
        trt: the imported module.
    """
    flags, types = trt.BuilderFlag.__members__, trt.DataType.__members__
    whole = not is_rtx(trt)
    return {
        "trtkp's plugins": whole,
        **dict.fromkeys(_standard_plugins(trt), True),
        "2:4 weights": "SPARSE_WEIGHTS" in flags,
        "bf16": "BF16" in types,
        "fp8": "FP8" in types,
        "--refit": "REFIT" in flags,
        "--strip-weights": "STRIP_PLAN" in flags,
        "stripped at full speed": "REFIT_IDENTICAL" in flags,
        "--version-compatible": whole and "VERSION_COMPATIBLE" in flags,
        "--exclude-lean-runtime": whole and "EXCLUDE_LEAN_RUNTIME" in flags,
        "--embed-plugins": whole and hasattr(trt.IBuilderConfig, "plugins_to_serialize"),
        "--hardware-compatible": whole and hasattr(trt, "HardwareCompatibilityLevel"),
        "--target": not whole,
        "timing cache": whole,
        "progress": hasattr(trt, "IProgressMonitor"),
    }


def _standard_plugins(trt: Any) -> list[str]:
    """Names of the library's own plugins that a graph is most likely to need, as far as they are registered."""
    init_standard_plugins(trt, process_logger(trt))
    wanted = ("ROIAlign_TRT", "EfficientNMS_TRT")
    known = {
        creator.name for creator in trt.get_plugin_registry().all_creators if creator.plugin_namespace != NAMESPACE
    }
    return [name for name in wanted if name in known]


def main() -> None:
    """Print `supported` of the module that the last argument names, as JSON in the last line."""
    sys.stdout.write(json.dumps(supported(importlib.import_module(sys.argv[-1]))) + "\n")
