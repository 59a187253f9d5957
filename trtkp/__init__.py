"""trtkp: kernel-level pruning of CNNs, packed, planned and built into TensorRT engines.

``build`` prunes a model and writes a bundle, ``calibrate`` makes one in 8 bits, ``load`` opens one, ``verify``,
``bench`` and ``compare`` check it, time it and hold it against others. Importing this package imports none of the
heavy libraries behind it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from trtkp.version import __version__

# When ONNX Runtime is imported, it stores a telemetry identifier in the home folder. Where that cannot be written (in a
# container, for a service account), it prints a warning on standard error, in the middle of a command's output. The
# variable is set here because this module runs before every other one of trtkp; a value set by the user is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from trtkp.budget.advise import Advice, advise
    from trtkp.budget.options import AdviceOptions
    from trtkp.bundle import Bundle, load
    from trtkp.calib.options import CalibrationOptions
    from trtkp.comparison.bench import bench
    from trtkp.comparison.report.page import write_report
    from trtkp.comparison.run import compare
    from trtkp.engine.doctor import diagnose
    from trtkp.errors import InputError, IntegrityError, JobError, TrtkpError
    from trtkp.model import load_model
    from trtkp.pipeline.build import build
    from trtkp.pipeline.calibrate import calibrate
    from trtkp.pipeline.options import BuildOptions
    from trtkp.verification.bundle import verify

#: Public name to the module that holds it, imported at first use.
_HOME = {
    "Advice": "trtkp.budget.advise",
    "AdviceOptions": "trtkp.budget.options",
    "BuildOptions": "trtkp.pipeline.options",
    "Bundle": "trtkp.bundle",
    "CalibrationOptions": "trtkp.calib.options",
    "InputError": "trtkp.errors",
    "IntegrityError": "trtkp.errors",
    "JobError": "trtkp.errors",
    "TrtkpError": "trtkp.errors",
    "advise": "trtkp.budget.advise",
    "bench": "trtkp.comparison.bench",
    "build": "trtkp.pipeline.build",
    "calibrate": "trtkp.pipeline.calibrate",
    "compare": "trtkp.comparison.run",
    "diagnose": "trtkp.engine.doctor",
    "load": "trtkp.bundle",
    "load_model": "trtkp.model",
    "verify": "trtkp.verification.bundle",
    "write_report": "trtkp.comparison.report.page",
}

__all__ = [
    "Advice",
    "AdviceOptions",
    "BuildOptions",
    "Bundle",
    "CalibrationOptions",
    "InputError",
    "IntegrityError",
    "JobError",
    "TrtkpError",
    "__version__",
    "advise",
    "bench",
    "build",
    "calibrate",
    "compare",
    "diagnose",
    "load",
    "load_model",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
