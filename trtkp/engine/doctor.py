"""``trtkp doctor``: report what this machine can build and run with, and how to install what is missing.

The check is quick because it imports no heavy package. Versions come from the packages' metadata, and the GPU from the
driver. Only an imported library can tell ONNX Runtime's execution providers, and what a TensorRT knows, which a
process of its own is asked.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from trtkp.engine import BACKENDS, choose_backend, get_backend
from trtkp.engine.rtx_provider import DISTRIBUTIONS, MODULE
from trtkp.machine.cpu import allowed_cpus, usable_cores
from trtkp.machine.gpu import find_gpus
from trtkp.machine.jetson import find_jetson
from trtkp.machine.packages import importable, installed_version
from trtkp.machine.processes import child_command

__all__ = ["Finding", "Status", "doctor"]

#: ``ok``: present and usable. ``missing``: can be installed. ``unavailable``: cannot be used on this machine.
Status: TypeAlias = Literal["ok", "missing", "unavailable"]

_JETSON_GUIDE = "see docs/guides/jetson.md"
_LIBRARY = Path(__file__).parents[1] / "lib" / "libtrtkp.so"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked, such as ``torch`` or ``nvidia gpu``.
        status: ``ok``, ``missing`` or ``unavailable``.
        version: its version; None where it has none or is not installed.
        detail: one line: what was found, or why it cannot be used.
        remedy: what to do about it; None where nothing needs to be done.
    """

    name: str
    status: Status
    version: str | None = None
    detail: str = ""
    remedy: str | None = None


@dataclass(frozen=True)
class _Package:
    """A package: module to import, distributions that provide it, what it is used for, how to install it."""

    name: str
    module: str
    distributions: tuple[str, ...]
    use: str
    install: str


_PACKAGES = (
    _Package("torch", "torch", ("torch",), "pruning and export", "pip install torch"),
    _Package("onnx", "onnx", ("onnx",), "graph rewriting", "pip install onnx"),
    _Package(
        "tensorrt",
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "the backend tensorrt",
        "pip install 'trtkp[tensorrt]'",
    ),
    _Package(
        "tensorrt-rtx",
        "tensorrt_rtx",
        ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        "the backend tensorrt-rtx",
        "pip install 'trtkp[rtx]'",
    ),
    _Package(
        "onnxruntime-rtx",
        MODULE,
        DISTRIBUTIONS,
        "the backend onnxruntime-rtx",
        "pip install 'trtkp[ort-rtx]'",
    ),
    _Package("polygraphy", "polygraphy", ("polygraphy",), "checking TensorRT engines", "pip install polygraphy"),
    _Package("pycuda", "pycuda", ("pycuda",), "running engines, or cuda-bindings instead", "pip install 'trtkp[gpu]'"),
    _Package(
        "cuda-bindings",
        "cuda",
        ("cuda-bindings",),
        "running engines, and CUDA graphs",
        "pip install 'trtkp[cuda-python]'",
    ),
)


#: Asks an imported library what it knows. It is run and not imported: the backends lie above this module.
_FEATURES = "trtkp.engine.trt.features"
#: Longest wait for such a library to be imported, which takes a second or two.
_WAIT_S = 60
#: The libraries that are asked what they know.
_ENGINE_MODULES = ("tensorrt", "tensorrt_rtx")


def doctor() -> list[Finding]:
    """Run all checks, in the order in which ``trtkp doctor`` prints them.

    It prints nothing, and raises nothing whatever the machine lacks.

    Returns:
        One finding for every package, device and backend.

    Example:
        >>> import trtkp
        >>> [finding.status for finding in trtkp.doctor() if finding.name == "python"]
        ['ok']
    """
    packages = [_package(package) for package in _PACKAGES]
    after_onnx = 2
    return [
        _python(),
        _machine(),
        *_jetson(),
        *packages[:after_onnx],
        _onnxruntime(),
        *packages[after_onnx:],
        _gpu(),
        _nvcc(),
        _plugin_library(_LIBRARY),
        *(_backend(name) for name in BACKENDS),
        Finding("backend auto", "ok", None, _chosen()),
    ]


def _python() -> Finding:
    detail = f"{platform.python_implementation()} on {platform.system()} {platform.machine()}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", "unavailable", platform.python_version(), detail, "use Python 3.11, 3.12 or 3.13")
    return Finding("python", "ok", platform.python_version(), detail)


def _machine() -> Finding:
    memory = _memory_bytes()
    size = f", {memory / 2**30:.1f} GiB memory" if memory else ""
    model = _cpu_model()
    detail = f"{usable_cores()} usable cores of {len(allowed_cpus())} logical CPUs{size}"
    return Finding("cpu", "ok", None, f"{model}: {detail}" if model else detail)


def _jetson(root: Path = Path("/")) -> list[Finding]:
    """What matters on a Jetson board; nothing on another machine."""
    jetson = find_jetson(root)
    if jetson is None:
        return []
    version = f"JetPack {jetson.jetpack}" if jetson.jetpack else None
    linux = f", Jetson Linux {jetson.linux}" if jetson.linux else ""
    detail = f"{jetson.model or 'unknown board'}{linux}"
    if jetson.jetpack is None or jetson.jetpack < 6:
        return [Finding("jetson", "unavailable", version, detail, f"install JetPack 7.2.2 or later; {_JETSON_GUIDE}")]
    if jetson.jetpack == 6:
        detail += ": its TensorRT 10.3 has no Python 3.11 package, so engines are built with trtexec"
        return [Finding("jetson", "ok", version, detail, _JETSON_GUIDE)]
    return [Finding("jetson", "ok", version, f"{detail}: build here with TensorRT for SBSA")]


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _package(package: _Package) -> Finding:
    version = installed_version(*package.distributions)
    if not importable(package.module):
        return Finding(package.name, "missing", None, f"not installed; needed for {package.use}", package.install)
    detail = f"for {package.use}"
    if package.module not in _ENGINE_MODULES:
        return Finding(package.name, "ok", version, detail)
    found = _ask(package.module)
    if isinstance(found, str):
        return Finding(package.name, "unavailable", version, found, "reinstall it")
    has, lacks = ([name for name, known in found.items() if known is wanted] for wanted in (True, False))
    without = f"; has no {', '.join(lacks)}" if lacks else ""
    return Finding(package.name, "ok", version, f"{detail}; knows {', '.join(has)}{without}")


def _ask(module: str) -> dict[str, bool] | str:
    """What an installed TensorRT knows, or the reason why it cannot be asked, in one line."""
    command = [*child_command(_FEATURES), module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_WAIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it cannot be imported: {type(error).__name__}"
    try:
        return {str(name): bool(known) for name, known in json.loads(done.stdout.splitlines()[-1]).items()}
    except (ValueError, AttributeError, IndexError):
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return f"it cannot be imported: {said[-1] if said else f'status {done.returncode}'}"


def _onnxruntime() -> Finding:
    found = get_backend("onnxruntime").availability()
    if not found.can_run:
        return Finding("onnxruntime", "missing", None, found.detail, "pip install onnxruntime")
    try:
        import onnxruntime

        providers = ", ".join(onnxruntime.get_available_providers())
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("onnxruntime", "unavailable", found.version, f"cannot be imported: {error}", "reinstall it")
    return Finding("onnxruntime", "ok", found.version, f"providers: {providers}")


def _gpu() -> Finding:
    report = find_gpus()
    if not report.gpus:
        remedy = None if report.cuda is None else "check the driver with nvidia-smi"
        return Finding("nvidia gpu", "unavailable", report.driver, report.detail, remedy)
    found = [f"{gpu.name} ({gpu.sm}, {gpu.memory_bytes / 2**30:.0f} GiB)" for gpu in report.gpus]
    if len(found) > 1:  # the numbers are those of --device
        found = [f"{gpu.index}: {text}" for gpu, text in zip(report.gpus, found, strict=True)]
    return Finding("nvidia gpu", "ok", report.driver, f"{', '.join(found)}; the driver runs CUDA up to {report.cuda}")


def _nvcc() -> Finding:
    use = "needed only to build the plugin library"
    # CUDA's installer does not put nvcc on the path; these are the variables that CMake and pycuda look at too.
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None)
    if nvcc is None:
        return Finding(
            "nvcc", "missing", None, f"no CUDA compiler; {use}", "install the CUDA toolkit, or set CUDA_HOME"
        )
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        detail = f"it does not run: {type(error).__name__}"
        return Finding("nvcc", "unavailable", None, detail, "reinstall the CUDA toolkit")
    found = re.search(r"release (\d+\.\d+)", text)
    return Finding("nvcc", "ok", found.group(1) if found else None, use)


def _plugin_library(library: Path) -> Finding:
    if library.is_file():
        size = library.stat().st_size / 2**20
        return Finding(
            "plugin library", "ok", None, f"the CUDA package: {library.name} ({size:.1f} MiB){_kernels(library)}"
        )
    return Finding(
        "plugin library",
        "missing",
        None,
        f"the pure-Python package, without {library.name}: the backend tensorrt runs without our kernels",
        "build from source with nvcc: TRTKP_CUDA_ARCHITECTURES=native pip install . (or a list such as '80;89;90')",
    )


def _kernels(library: Path) -> str:
    """What the build recorded beside the library; nothing where it was put there by hand."""
    try:
        built = json.loads(library.with_name("kernels.json").read_text(encoding="utf-8"))
        return f", kernels for {', '.join(built['architectures'])} by nvcc {built['nvcc']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _backend(name: str) -> Finding:
    found = get_backend(name).availability()
    build, run = ("yes" if able else "no" for able in (found.can_build, found.can_run))
    detail = f"build here: {build}, run here: {run}; {found.detail}"
    status: Status = "ok" if found.can_run else "unavailable"
    if found.version is None and not found.can_build:
        status = "missing"
    return Finding(f"backend {name}", status, found.version, detail)


def _chosen() -> str:
    return f"chooses {choose_backend('auto').name}"
