"""The real driver bindings over a stand-in driver on host memory, each time in a process of its own; the choice of one.

The stand-in does what is sent to a stream when the stream is synchronised, refuses work without a context and counts
what is not given back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cuda.stand_in import driver_folder
from trtkp.cuda import device as device_module
from trtkp.cuda.device import open_device
from trtkp.errors import NotRunnableError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable

needs_bindings = pytest.mark.skipif(not importable("cuda"), reason="package cuda-bindings is not installed")


@pytest.fixture(scope="session")
def driver() -> Path:
    """Folder of the stand-in driver."""
    return driver_folder()


def over_the_stand_in(driver: Path, script: str) -> str:
    """What a script prints in a process that finds the stand-in driver."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


_BASICS = """
import ctypes, gc
import numpy as np
from trtkp.errors import JobError
from trtkp.cuda.device import open_device
device = open_device()
print(device.name)
held = ctypes.CDLL("libcuda.so.1").trtkpStandInAllocated
try:
    device.allocate(8)
    raise SystemExit("allocated without a context")
except JobError as error:
    print(error)
before = held()
with device.current():
    memory, stream = device.allocate(64), device.create_stream()
    source, result = device.pinned(64), device.pinned(64)
    first, last = device.create_event(), device.create_event()
    assert isinstance(device.stream_handle(stream), int)
    source[...] = np.arange(64)
    result[...] = 0
    device.record(first, stream)
    device.copy_in(memory.address, source, stream)
    device.copy_out(result, memory.address, stream)
    device.record(last, stream)
    assert result.sum() == 0  # nothing is done yet
    device.synchronize(stream)
    assert result.tolist() == list(range(64))
    assert device.elapsed_ms(first, last) == 1.0
    device.wait_for(stream, 1)
    # a graph does what was captured, with what the memory holds when it is launched
    assert device.why_no_graphs is None
    with device.captured(stream) as graphs:
        device.copy_in(memory.address, source, stream)
        device.copy_out(result, memory.address, stream)
    device.synchronize(stream)
    for value in (7, 9):
        source[...] = value
        device.launch(graphs[0], stream)
        device.synchronize(stream)
        assert (result == value).all()
    try:
        with device.captured(stream):
            raise ValueError("no")
    except ValueError:
        pass
    device.synchronize(stream)  # the stream does not capture any more
    view = device.pinned(16)[4:8]
    gc.collect()
    view[...] = 1  # the memory lives as long as its views
    memory.free()
    memory.free()
    del memory, stream, source, result, first, last, graphs, view
    gc.collect()
assert held() == before, held() - before
try:
    type(device)(1)
except JobError as error:
    print(error)
"""


@needs_bindings
def test_cuda_python(driver: Path) -> None:
    lines = over_the_stand_in(driver, _BASICS).splitlines()
    assert lines == [
        "cuda-bindings", "cuMemAlloc: CUDA_ERROR_INVALID_CONTEXT", "cuDeviceGet: CUDA_ERROR_INVALID_DEVICE",
    ]  # fmt: skip


def test_gpu_of_a_driver(driver: Path) -> None:
    """The figures that plans are made with come from the driver."""
    script = "from trtkp.machine.gpu import find_gpus; print(find_gpus().gpus[0])"
    assert over_the_stand_in(driver, script).strip() == (
        "Gpu(index=0, name='NVIDIA Stand-in L4', compute_capability=(8, 9), memory_bytes=25769803776, "
        "multiprocessors=58, cache_bytes=50331648)"
    )


@pytest.mark.skipif(bool(find_gpus().gpus), reason="this machine has a GPU")
def test_without_a_gpu_every_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    if importable("cuda"):
        with pytest.raises(NotRunnableError, match=r"the GPU cannot be used: .*cuda.bindings: "):
            open_device()
    monkeypatch.setattr(device_module, "importable", lambda name: False)
    with pytest.raises(NotRunnableError, match="neither pycuda nor cuda-bindings is installed"):
        open_device()


def test_pycuda_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins of both modules."""

    def load(name: str) -> Any:
        kind = name.rpartition(".")[2]
        broken = kind == broken_kind
        return SimpleNamespace(
            PyCudaDevice=lambda index: 1 / 0 if broken else (kind, index),
            CudaPythonDevice=lambda index: (kind, index),
        )

    broken_kind = ""
    monkeypatch.setattr(device_module, "importable", lambda name: True)
    monkeypatch.setattr(device_module.importlib, "import_module", load)
    assert open_device(2) == ("pycuda", 2)
    broken_kind = "pycuda"
    assert open_device() == ("cuda_python", 0)
