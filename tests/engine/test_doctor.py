"""The doctor: complete, quiet, light."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from trtkp.engine import BACKENDS
from trtkp.engine import doctor as module
from trtkp.engine.doctor import doctor
from trtkp.machine.packages import importable

_EXPECTED = {
    "python",
    "cpu",
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-rtx",
    "polygraphy",
    "pycuda",
    "cuda-bindings",
    "nvidia gpu",
    "nvcc",
    "plugin library",
    *(f"backend {name}" for name in BACKENDS),
    "backend auto",
}


def test_everything_is_looked_at_and_nothing_printed(capfd: pytest.CaptureFixture[str]) -> None:
    checks = doctor()
    assert {check.name for check in checks} == _EXPECTED
    assert len(checks) == len(_EXPECTED)
    assert capfd.readouterr() == ("", "")


def test_findings_are_one_line_name_no_host_and_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # a name that no finding holds by chance, as they do that of a machine called "gpu"
    monkeypatch.setattr(socket, "gethostname", lambda: "name-of-this-host")
    monkeypatch.setattr(platform, "node", socket.gethostname)
    for check in doctor():
        assert check.status in {"ok", "missing", "unavailable"}
        assert check.detail
        assert "\n" not in check.detail
        assert socket.gethostname() not in f"{check.detail} {check.remedy}"
        if check.status == "missing":
            assert check.remedy or "pip install" in check.detail
    json.dumps([asdict(check) for check in doctor()])


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from trtkp.engine.doctor import doctor; doctor(); "
        "print([m for m in ('torch', 'tensorrt', 'tensorrt_rtx', 'onnx', 'polygraphy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_plugin_library_found_or_how_to_get_it(tmp_path: Path) -> None:
    missing = module._plugin_library(tmp_path / "libtrtkp.so")
    assert missing.status == "missing"
    assert missing.remedy is not None
    assert "TRTKP_CUDA_ARCHITECTURES" in missing.remedy
    (tmp_path / "libtrtkp.so").write_bytes(b"\0" * 100)
    assert module._plugin_library(tmp_path / "libtrtkp.so").status == "ok"
    (tmp_path / "kernels.json").write_text('{"architectures": ["sm_80", "sm_90"], "nvcc": "13.0.88"}')
    assert "kernels for sm_80, sm_90 by nvcc 13.0.88" in module._plugin_library(tmp_path / "libtrtkp.so").detail
    (tmp_path / "kernels.json").write_text("[]")
    assert module._plugin_library(tmp_path / "libtrtkp.so").status == "ok"


def test_compiler_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._nvcc().status == "unavailable"
    compiler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.1, V13.1.80'\n")
    assert (module._nvcc().status, module._nvcc().version) == ("ok", "13.1")


def test_what_tensorrt_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real TensorRT-RTX, in a process of its own, and of a stand-in for TensorRT."""
    package = module._Package("tensorrt", "tests.engine.trt.recording_tensorrt", ("onnx",), "the tests", "")
    monkeypatch.setattr(module, "_ENGINE_MODULES", (package.module, "tensorrt_rtx"))
    found = module._package(package)
    assert found.status == "ok"
    knows, _, lacks = found.detail.partition("; has no ")
    assert "for the tests; knows trtkp's plugins, ROIAlign_TRT, EfficientNMS_TRT, 2:4 weights, bf16, fp8" in knows
    assert lacks == "--target"
    if importable("tensorrt_rtx"):
        (rtx,) = (module._package(package) for package in module._PACKAGES if package.module == "tensorrt_rtx")
        knows, _, lacks = rtx.detail.partition("; has no ")
        assert all(name in knows for name in ("ROIAlign_TRT", "2:4 weights", "--strip-weights", "--target"))
        assert all(name in lacks for name in ("trtkp's plugins", "--embed-plugins", "--hardware-compatible"))


def test_library_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_tensorrt.py").write_text(
        "import os\nos.write(1, b'hello')\nraise OSError('libnvinfer.so.11')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "_ENGINE_MODULES", ("broken_tensorrt",))
    found = module._package(module._Package("tensorrt", "broken_tensorrt", ("onnx",), "the tests", ""))
    assert (found.status, found.detail) == ("unavailable", "it cannot be imported: OSError: libnvinfer.so.11")
