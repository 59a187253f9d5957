"""trtkp: kernel-level pruning of CNNs, packed, planned and built into TensorRT and ONNX Runtime engines.

``build`` prunes a model and writes a bundle; ``prune`` also trains, ``calibrate`` makes a bundle in 8 bits, and
``load`` opens one. ``verify``, ``inspect``, ``bench`` and ``compare`` check bundles, show what they hold, time them and
compare them; ``serve`` starts a server. ``advise`` and ``search`` tell what to prune on this machine, and ``doctor``
what the machine can build and run. Importing this package imports none of the heavy libraries behind it.
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
    from trtkp.budget.options import AdviceOptions, SearchOptions
    from trtkp.budget.run import SearchResult
    from trtkp.budget.search import search
    from trtkp.bundle import Bundle, Manifest, load
    from trtkp.bundle.inspection import Inspection, inspect
    from trtkp.bundle.pruned import Pruned, PrunedManifest, load_pruned
    from trtkp.calib.options import CalibrationOptions
    from trtkp.comparison.bench import BenchResult, bench
    from trtkp.comparison.report.page import write_report
    from trtkp.comparison.result import Comparison
    from trtkp.comparison.run import compare
    from trtkp.data.labelled import LabelledData
    from trtkp.engine.doctor import Finding, doctor
    from trtkp.engine.options import RunOptions, TrtOptions
    from trtkp.errors import InputError, IntegrityError, JobError, NotRunnableError, TrtkpError
    from trtkp.index.index_set import IndexSet
    from trtkp.model import SourceModel, load_model
    from trtkp.pipeline.build import build
    from trtkp.pipeline.calibrate import calibrate
    from trtkp.pipeline.options import BuildOptions
    from trtkp.pruning.method import Method
    from trtkp.pruning.methods.channels import Channels
    from trtkp.pruning.methods.dppnet import DPPNet
    from trtkp.pruning.methods.fixed import Dense, FromZeros
    from trtkp.pruning.methods.kep import KEP
    from trtkp.pruning.methods.l1 import L1
    from trtkp.pruning.methods.pptkp import PPTKP
    from trtkp.pruning.methods.soks import SOKS
    from trtkp.pruning.methods.vskp import VSKP
    from trtkp.pruning.run.options import PruneOptions
    from trtkp.pruning.run.run import prune
    from trtkp.pruning.train.recipe import Preprocessing, Recipe, Training, read_recipe
    from trtkp.serving.addresses import Addresses
    from trtkp.serving.options import ServeOptions
    from trtkp.serving.server.start import serve
    from trtkp.verification.bundle import VerificationReport, verify

#: Public name to the module that holds it, imported at first use.
_HOME = {
    "Addresses": "trtkp.serving.addresses",
    "Advice": "trtkp.budget.advise",
    "AdviceOptions": "trtkp.budget.options",
    "BenchResult": "trtkp.comparison.bench",
    "BuildOptions": "trtkp.pipeline.options",
    "Bundle": "trtkp.bundle",
    "CalibrationOptions": "trtkp.calib.options",
    "Channels": "trtkp.pruning.methods.channels",
    "Comparison": "trtkp.comparison.result",
    "DPPNet": "trtkp.pruning.methods.dppnet",
    "Dense": "trtkp.pruning.methods.fixed",
    "Finding": "trtkp.engine.doctor",
    "FromZeros": "trtkp.pruning.methods.fixed",
    "IndexSet": "trtkp.index.index_set",
    "InputError": "trtkp.errors",
    "Inspection": "trtkp.bundle.inspection",
    "IntegrityError": "trtkp.errors",
    "JobError": "trtkp.errors",
    "KEP": "trtkp.pruning.methods.kep",
    "L1": "trtkp.pruning.methods.l1",
    "LabelledData": "trtkp.data.labelled",
    "Manifest": "trtkp.bundle",
    "Method": "trtkp.pruning.method",
    "NotRunnableError": "trtkp.errors",
    "PPTKP": "trtkp.pruning.methods.pptkp",
    "Preprocessing": "trtkp.pruning.train.recipe",
    "PruneOptions": "trtkp.pruning.run.options",
    "Pruned": "trtkp.bundle.pruned",
    "PrunedManifest": "trtkp.bundle.pruned",
    "Recipe": "trtkp.pruning.train.recipe",
    "RunOptions": "trtkp.engine.options",
    "SOKS": "trtkp.pruning.methods.soks",
    "SearchOptions": "trtkp.budget.options",
    "SearchResult": "trtkp.budget.run",
    "ServeOptions": "trtkp.serving.options",
    "SourceModel": "trtkp.model",
    "Training": "trtkp.pruning.train.recipe",
    "TrtOptions": "trtkp.engine.options",
    "TrtkpError": "trtkp.errors",
    "VSKP": "trtkp.pruning.methods.vskp",
    "VerificationReport": "trtkp.verification.bundle",
    "advise": "trtkp.budget.advise",
    "bench": "trtkp.comparison.bench",
    "build": "trtkp.pipeline.build",
    "calibrate": "trtkp.pipeline.calibrate",
    "compare": "trtkp.comparison.run",
    "doctor": "trtkp.engine.doctor",
    "inspect": "trtkp.bundle.inspection",
    "load": "trtkp.bundle",
    "load_model": "trtkp.model",
    "load_pruned": "trtkp.bundle.pruned",
    "prune": "trtkp.pruning.run.run",
    "read_recipe": "trtkp.pruning.train.recipe",
    "search": "trtkp.budget.search",
    "serve": "trtkp.serving.server.start",
    "verify": "trtkp.verification.bundle",
    "write_report": "trtkp.comparison.report.page",
}

__all__ = [  # noqa: RUF022 - the order of sorted()
    "Addresses",
    "Advice",
    "AdviceOptions",
    "BenchResult",
    "BuildOptions",
    "Bundle",
    "CalibrationOptions",
    "Channels",
    "Comparison",
    "DPPNet",
    "Dense",
    "Finding",
    "FromZeros",
    "IndexSet",
    "InputError",
    "Inspection",
    "IntegrityError",
    "JobError",
    "KEP",
    "L1",
    "LabelledData",
    "Manifest",
    "Method",
    "NotRunnableError",
    "PPTKP",
    "Preprocessing",
    "PruneOptions",
    "Pruned",
    "PrunedManifest",
    "Recipe",
    "RunOptions",
    "SOKS",
    "SearchOptions",
    "SearchResult",
    "ServeOptions",
    "SourceModel",
    "Training",
    "TrtOptions",
    "TrtkpError",
    "VSKP",
    "VerificationReport",
    "__version__",
    "advise",
    "bench",
    "build",
    "calibrate",
    "compare",
    "doctor",
    "inspect",
    "load",
    "load_model",
    "load_pruned",
    "prune",
    "read_recipe",
    "search",
    "serve",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
