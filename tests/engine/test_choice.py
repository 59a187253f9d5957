"""Names, choice and availability of the backends; the GPU and CPU looked at."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trtkp.engine import (
    BACKENDS,
    Availability,
    BuildRequest,
    NotRunnableError,
    choose_backend,
    cpu_backend,
    get_backend,
)
from trtkp.errors import InputError
from trtkp.machine import cpu, gpu
from trtkp.machine.gpu import Gpu, GpuReport, find_gpus

_ADA = GpuReport((Gpu(0, "NVIDIA RTX 4000", (8, 9), 20 << 30),), "580.65", "13.0", "NVIDIA RTX 4000 (sm89)")
_HOPPER = GpuReport((Gpu(0, "NVIDIA H100", (9, 0), 80 << 30),), "580.65", "13.0", "NVIDIA H100 (sm90)")
_NONE = GpuReport((), None, None, "no NVIDIA GPU: no driver library")


def _machine(monkeypatch: pytest.MonkeyPatch, report: GpuReport, *packages: str) -> None:
    for module in ("trtkp.engine.trt.tensorrt", "trtkp.engine.trt.tensorrt_rtx"):
        monkeypatch.setattr(f"{module}.find_gpus", lambda: report)
        monkeypatch.setattr(f"{module}.importable", lambda name: name in packages)


def test_importing_imports_no_library() -> None:
    code = (
        "import sys, trtkp.engine as e; [e.get_backend(n).availability() for n in e.BACKENDS]; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(InputError, match=", ".join(BACKENDS)):
        get_backend("openvino")


@pytest.mark.parametrize(
    ("report", "packages", "expected"),
    [
        (_NONE, ("tensorrt", "tensorrt_rtx"), "onnxruntime"),
        (_ADA, ("tensorrt", "tensorrt_rtx"), "tensorrt"),
        (_ADA, ("tensorrt_rtx",), "tensorrt-rtx"),
        (_ADA, (), "onnxruntime"),
        (_HOPPER, ("tensorrt_rtx",), "onnxruntime"),
    ],
)
def test_auto_takes_the_best_that_runs(
    monkeypatch: pytest.MonkeyPatch, report: GpuReport, packages: tuple[str, ...], expected: str
) -> None:
    _machine(monkeypatch, report, *packages)
    assert choose_backend("auto").name == expected
    assert choose_backend("tensorrt").name == "tensorrt"
    assert cpu_backend().name == "onnxruntime"


def test_auto_takes_onnxruntime_where_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, _NONE)
    monkeypatch.setattr("trtkp.engine.onnxruntime.importable", lambda name: False)
    table = {name: BACKENDS[name] for name in ("onnxruntime", "tensorrt-rtx")}
    monkeypatch.setattr("trtkp.engine.BACKENDS", table)
    assert choose_backend("auto").name == "onnxruntime"


def test_reasons_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, _NONE)
    assert "pip install 'trtkp[tensorrt]'" in get_backend("tensorrt").availability().detail
    _machine(monkeypatch, _NONE, "tensorrt", "tensorrt_rtx")
    assert get_backend("tensorrt").availability() == Availability(False, False, None, _NONE.detail)
    rtx = get_backend("tensorrt-rtx").availability()
    assert (rtx.can_build, rtx.can_run) == (True, False)
    _machine(monkeypatch, _HOPPER, "tensorrt", "tensorrt_rtx")
    assert "not an RTX GPU" in get_backend("tensorrt-rtx").availability().detail
    assert get_backend("tensorrt").availability().can_run


def test_each_gpu_is_asked_for_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = replace(_HOPPER.gpus[0], index=1)
    _machine(monkeypatch, GpuReport((*_ADA.gpus, hopper), "580.65", "13.0", ""), "tensorrt_rtx")
    rtx = get_backend("tensorrt-rtx")
    assert [rtx.availability(device).can_run for device in range(3)] == [True, False, False]
    assert "NVIDIA H100 (sm90) is not an RTX GPU" in rtx.availability(1).detail
    assert "there is no GPU 2, only 0: NVIDIA RTX 4000 (sm89), 1: NVIDIA H100 (sm90)" in rtx.availability(2).detail
    assert [choose_backend("auto", device).name for device in range(2)] == ["tensorrt-rtx", "onnxruntime"]


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [(0, None, None), (0, "2,3", "2,3"), (2, None, "2"), (1, "3, GPU-5a", "GPU-5a"), (1, "3,1,2", "1")],
)
def test_a_child_sees_one_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, device: int, visible: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.environment_with(device).get("CUDA_VISIBLE_DEVICES") == expected


def test_a_gpu_that_was_hidden_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InputError, match="--device 1: CUDA_VISIBLE_DEVICES=0 does not name it; add it there"):
        gpu.environment_with(1)


def test_tensorrt_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _machine(monkeypatch, _NONE, "tensorrt")
    backend = get_backend("tensorrt")
    request = BuildRequest(tmp_path / "a.onnx", tmp_path, {})
    with pytest.raises(NotRunnableError, match="no NVIDIA GPU"):
        backend.build(request)
    with pytest.raises(InputError, match="builds for this machine's GPU only"):
        backend.build(BuildRequest(tmp_path / "a.onnx", tmp_path, {}, targets=("sm86",)))
    with pytest.raises(InputError, match="no such file"):
        backend.open(tmp_path / "model.engine")
    (tmp_path / "model.engine").write_bytes(b"x")
    with pytest.raises(NotRunnableError, match="no NVIDIA GPU"):
        backend.open(tmp_path / "model.engine")


def test_every_backend_answers_here() -> None:
    for name in BACKENDS:
        found = get_backend(name).availability()
        assert found.detail
        assert "\n" not in found.detail


def test_gpu_report_of_this_machine() -> None:
    report = find_gpus()
    assert report.detail
    assert all(g.sm.startswith("sm") and g.memory_bytes > 0 for g in report.gpus)


def test_driver_library_of_another_kind_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # The C library stands in for a driver that lacks every symbol asked for.
    monkeypatch.setattr(gpu, "_load", lambda names: ctypes.CDLL(None))
    report = gpu.find_gpus.__wrapped__()
    assert report.gpus == ()
    assert "cannot be used" in report.detail


def test_usable_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(cpu, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cpu, "allowed_cpus", lambda: frozenset(range(4)))
    assert cpu.usable_cores() == 4
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    assert cpu.usable_cores() == 2
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cpu.usable_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu.usable_cores() == 2
