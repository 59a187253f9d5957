"""A machine with two GPUs: whatever is asked to use the second uses it, and nothing else.

The driver is the stand-in of ``tests/cuda``, for this process and for its children; builder and runtime are those of
this folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import trtkp
from tests.cuda.recording_device import RecordingDevice
from tests.cuda.stand_in import driver_folder
from tests.models import write_classifier
from trtkp.bundle import Bundle
from trtkp.engine import get_backend
from trtkp.engine.options import RunOptions
from trtkp.errors import InputError, NotRunnableError
from trtkp.machine.gpu import find_gpus
from trtkp.pipeline.options import BuildOptions
from trtkp.plan.cache import DIRECTORY_VARIABLE
from trtkp.plan.target import EngineTarget
from trtkp.serving.contract import Contract
from trtkp.serving.models.service import Service
from trtkp.serving.options import ServeOptions
from trtkp.serving.worker.process import WorkerProcess

_MODULE = "tests.engine.trt.recording_tensorrt"
_NONE = "there is no GPU 2, only 0: NVIDIA Stand-in L4 (sm89), 1: NVIDIA Stand-in A100 (sm80)"


@dataclass
class Machine:
    """``opened`` are the numbers of the GPUs on which engines were opened."""

    opened: list[int] = field(default_factory=list)

    def open_device(self, index: int = 0) -> RecordingDevice:
        self.opened.append(index)
        return RecordingDevice(index)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    driver = driver_folder()
    monkeypatch.setattr("trtkp.machine.gpu._DRIVER_LIBRARIES", (str(driver / "libcuda.so.1"),))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver), prepend=":")
    monkeypatch.setenv("TRTKP_STAND_IN_GPUS", "2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("trtkp.engine.trt.tensorrt._MODULE", _MODULE)
    monkeypatch.setattr("trtkp.engine.trt.tensorrt.importable", lambda name: name == _MODULE)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "timings"))
    machine = Machine()
    monkeypatch.setattr("trtkp.engine.trt.runner.open_device", machine.open_device)
    find_gpus.cache_clear()
    yield machine
    find_gpus.cache_clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("model") / "net.onnx", (3, 16, 32, 32))


def build(model: Path, target: Path, **options: Any) -> Bundle:
    given: dict[str, Any] = {
        "backend": "tensorrt",
        "lowering": "gather",
        "plugins": False,
        "max": ("4x3x8x8",),
        "device": 1,
    }
    return trtkp.build(model, target, method="none", options=BuildOptions(**given | options))


@pytest.fixture
def bundle(machine: Machine, model: Path, tmp_path: Path) -> Bundle:
    return build(model, tmp_path / "bundle")


def test_build(machine: Machine, bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.manifest.tensorrt is not None
    assert bundle.manifest.tensorrt.gpu == "NVIDIA Stand-in A100"
    assert machine.opened == [1]  # to check the engine
    # named by the build worker, which sees that GPU as its first
    assert [file.name for file in (tmp_path / "timings").glob("*.tactics")] == [
        "tests.engine.trt.recording-tensorrt-11.4.0-nvidia-stand-in-a100-sm80.tactics"
    ]


@pytest.mark.parametrize(("device", "capability"), [(0, 89), (1, 80)])
def test_predictions_are_for_that_gpu(machine: Machine, device: int, capability: int) -> None:
    target = EngineTarget.here(get_backend("tensorrt"), precision="fp16", plugins=False, device=device)
    assert target is not None
    assert target.gpu.capability == capability
    assert EngineTarget.here(get_backend("tensorrt"), precision="fp16", plugins=False, device=2) is None


def test_verify_bench_and_compare(
    machine: Machine, bundle: Bundle, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtkp.comparison.bench.GPU_SECONDS", 0.05)
    other = build(model, tmp_path / "other", device=0)
    assert machine.opened == [1, 0]
    machine.opened.clear()
    assert trtkp.verify(bundle, device=1, require_engine=True).ok
    assert machine.opened == [1]
    trtkp.bench([bundle], runs=1, warmup=0, device=1)
    assert machine.opened == [1, 1]
    comparison = trtkp.compare([bundle, other], runs=1, openings=1, warmup=0, device=1)
    assert [entry.layers is not None for entry in comparison.entries] == [True, True]  # the profiles are of it too
    assert set(machine.opened) == {1}


def test_run_options(machine: Machine, bundle: Bundle) -> None:
    bundle.open(options=RunOptions(device=1)).close()
    bundle.open().close()
    assert machine.opened == [1, 1, 0]
    with pytest.raises(NotRunnableError, match=f"TensorRT cannot open the engine here: {_NONE[:20]}"):
        bundle.open(options=RunOptions(device=2))


def test_an_engine_is_held_against_the_gpu_that_shall_run_it(machine: Machine, bundle: Bundle) -> None:
    bundle.manifest.targets.append("sm80")
    bundle.open(options=RunOptions(device=1)).close()
    with pytest.raises(NotRunnableError, match=r"built for sm80, the GPU here is NVIDIA Stand-in L4 \(sm89\)"):
        bundle.open()


def test_serving_worker_sees_that_gpu_alone(machine: Machine, model: Path, tmp_path: Path) -> None:
    trtkp.build(model, tmp_path / "cpu", method="none", options=BuildOptions(backend="onnxruntime", threads=1))
    opened = trtkp.load(tmp_path / "cpu")

    async def seen(device: int) -> list[bytes]:
        worker = await WorkerProcess.start(opened, Contract.of(opened, "cpu"), 1, 1, device)
        try:
            return variables(worker.pid)
        finally:
            await worker.stop()

    def variables(pid: int) -> list[bytes]:
        found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return [text for text in found if text.startswith(b"CUDA_VISIBLE_DEVICES=")]

    assert asyncio.run(seen(1)) == [b"CUDA_VISIBLE_DEVICES=1"]
    assert asyncio.run(seen(0)) == []


def test_a_gpu_that_is_not_there_is_one_line(machine: Machine, bundle: Bundle, model: Path, tmp_path: Path) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: build(model, tmp_path / "new", device=2),
        lambda: build(model, tmp_path / "new", device=2, backend="auto"),
        lambda: trtkp.verify(bundle, device=2),
        lambda: trtkp.bench([bundle], device=2),
        lambda: trtkp.compare([bundle, tmp_path / "other"], device=2),
        lambda: trtkp.calibrate(bundle, tmp_path / "new", data="x.npz", options=BuildOptions(device=2)),
        lambda: Service([bundle.path], ServeOptions(device=2)),
    ]
    for call in calls:
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).endswith(f"--device 2: {_NONE}; trtkp doctor lists the GPUs")
    assert not (tmp_path / "new").exists()


def test_a_gpu_for_the_cpu(machine: Machine, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--device 1 means nothing to backend onnxruntime; use -b tensorrt"):
        build(model, tmp_path / "new", backend="onnxruntime")
    with pytest.raises(InputError, match="device"):
        BuildOptions(device=-1)


def test_doctor_numbers_them(machine: Machine) -> None:
    (found,) = [finding for finding in trtkp.doctor() if finding.name == "nvidia gpu"]
    assert found.detail.startswith("0: NVIDIA Stand-in L4 (sm89, 24 GiB), 1: NVIDIA Stand-in A100 (sm80, 24 GiB); the")
