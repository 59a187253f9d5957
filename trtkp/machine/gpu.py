"""The NVIDIA GPUs of this machine, as the driver reports them. No package is needed.

A machine without a GPU has no ``libcuda``, and one with a broken driver has a ``libcuda`` whose ``cuInit`` fails. Both
are ordinary answers. ``CUDA_VISIBLE_DEVICES`` is honoured, because the driver honours it; the GPUs are numbered as the
driver numbers them to this process.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from trtkp.errors import InputError

__all__ = [
    "Gpu",
    "GpuReport",
    "check_gpu",
    "environment_with",
    "find_gpus",
    "memory_used",
    "why_not_built_for_here",
]

_DRIVER_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_MANAGEMENT_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")

# Values of CUdevice_attribute in the driver interface (cuda.h), which keeps them from version to version.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_MULTIPROCESSORS = 16
_CACHE_BYTES = 38


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: its number among the GPUs that this process sees.
        name: as the driver reports it.
        compute_capability: (major, minor).
        memory_bytes: total device memory.
        multiprocessors: number of streaming multiprocessors.
        cache_bytes: size of the L2 cache.

    Example:
        >>> Gpu(0, "NVIDIA L4", (8, 9), 24 << 30).sm
        'sm89'
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    multiprocessors: int = 0
    cache_bytes: int = 0

    @property
    def sm(self) -> str:
        """The architecture as TensorRT-RTX and nvcc write it, such as ``sm89``."""
        major, minor = self.compute_capability
        return f"sm{major}{minor}"


@dataclass(frozen=True)
class GpuReport:
    """What the driver reports.

    Attributes:
        gpus: the visible GPUs, possibly none.
        driver: version of the driver, such as ``580.65.06``; None if unknown.
        cuda: newest CUDA version that the driver supports, such as ``13.0``; None without a driver.
        detail: one line that names the GPUs, or says why there are none.
    """

    gpus: tuple[Gpu, ...]
    driver: str | None
    cuda: str | None
    detail: str

    def gpu(self, device: int) -> Gpu | None:
        """The GPU of this number; None if there is none."""
        return next((gpu for gpu in self.gpus if gpu.index == device), None)

    def why_not(self, device: int) -> str | None:
        """Why the GPU of this number cannot be used; None if it is there.

        Example:
            >>> GpuReport((Gpu(0, "NVIDIA L4", (8, 9), 24 << 30),), None, None, "NVIDIA L4 (sm89)").why_not(2)
            'there is no GPU 2, only 0: NVIDIA L4 (sm89)'
        """
        if not self.gpus:
            return self.detail
        if self.gpu(device) is not None:
            return None
        return f"there is no GPU {device}, only {_numbered(self.gpus)}"


@functools.lru_cache(maxsize=1)
def find_gpus() -> GpuReport:
    """The visible GPUs. The driver is asked once per process."""
    try:
        return _ask_driver()
    except (AttributeError, OSError, ValueError) as error:
        # A very old driver may lack a symbol. Then there is no usable GPU, but no crash either.
        return GpuReport((), None, None, f"no NVIDIA GPU: the driver library cannot be used ({error})")


def check_gpu(device: int) -> None:
    """Refuse the number of a GPU that is not here. The first, 0, is never refused: it stands for no choice.

    Raises:
        InputError: there is no such GPU.
    """
    if device and (reason := find_gpus().why_not(device)) is not None:
        raise InputError(f"--device {device}: {reason}", remedy="trtkp doctor lists the GPUs")


def environment_with(device: int) -> dict[str, str]:
    """The environment of a child process that shall see one GPU alone, as its first; for 0, this process's own.

    So every library of the child uses that GPU, on every thread, whether or not it can be told a number.

    Args:
        device: number of the GPU in this process.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES no longer names the GPU.
    """
    environment = dict(os.environ)
    if device:
        visible = environment.get(_VISIBLE)
        names = None if visible is None else visible.split(",")
        if names is not None and device >= len(names):
            raise InputError(f"--device {device}: {_VISIBLE}={visible} does not name it", remedy="add it there")
        environment[_VISIBLE] = str(device) if names is None else names[device].strip()
    return environment


def _ask_driver() -> GpuReport:
    cuda = _load(_DRIVER_LIBRARIES)
    if cuda is None:
        return GpuReport((), None, None, "no NVIDIA GPU: no driver library (libcuda) on this machine")
    version = ctypes.c_int()
    newest = None
    if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0:
        newest = f"{version.value // 1000}.{version.value % 1000 // 10}"  # 13000 means 13.0
    driver = _driver_version()
    status = cuda.cuInit(0)
    if status != 0:
        return GpuReport((), driver, newest, f"no NVIDIA GPU: cuInit failed ({_error_name(cuda, status)})")
    count = ctypes.c_int()
    status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return GpuReport((), driver, newest, f"no NVIDIA GPU: counting them failed ({_error_name(cuda, status)})")
    if not count.value:
        return GpuReport((), driver, newest, "no NVIDIA GPU: the driver sees none (is CUDA_VISIBLE_DEVICES set?)")
    gpus = tuple(_describe(cuda, index) for index in range(count.value))
    detail = f"{gpus[0].name} ({gpus[0].sm})" if len(gpus) == 1 else _numbered(gpus)
    return GpuReport(gpus, driver, newest, detail)


def _numbered(gpus: Sequence[Gpu]) -> str:
    return ", ".join(f"{gpu.index}: {gpu.name} ({gpu.sm})" for gpu in gpus)


def _describe(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    _must(cuda, cuda.cuDeviceGet(ctypes.byref(device), index))
    name = ctypes.create_string_buffer(256)
    _must(cuda, cuda.cuDeviceGetName(name, len(name), device))
    wanted = (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR, _MULTIPROCESSORS, _CACHE_BYTES)
    found = [ctypes.c_int() for _ in wanted]
    for value, attribute in zip(found, wanted, strict=True):
        _must(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
    major, minor, multiprocessors, cache = (value.value for value in found)
    memory = ctypes.c_size_t()
    _must(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    return Gpu(index, name.value.decode(errors="replace"), (major, minor), memory.value, multiprocessors, cache)


def _must(cuda: ctypes.CDLL, status: int) -> None:
    if status != 0:
        raise OSError(_error_name(cuda, status))


def _error_name(cuda: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode(errors="replace")
    return f"error {status}"


def _driver_version() -> str | None:
    management = _load(_MANAGEMENT_LIBRARIES)
    if management is None or management.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(96)
    status = management.nvmlSystemGetDriverVersion(text, len(text))
    management.nvmlShutdown()
    return text.value.decode(errors="replace") if status == 0 else None


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``, in bytes."""

    _fields_: ClassVar = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def memory_used() -> tuple[int, ...]:
    """Bytes in use on every GPU of the machine, by all processes. Empty without a driver."""
    management = _load(_MANAGEMENT_LIBRARIES)
    if management is None or management.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        management.nvmlDeviceGetCount_v2(ctypes.byref(count))
        used = []
        for index in range(count.value):
            device, memory = ctypes.c_void_p(), _Memory()
            if (
                management.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0
                and management.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0
            ):
                used.append(int(memory.used))
        return tuple(used)
    finally:
        management.nvmlShutdown()


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def why_not_built_for_here(targets: Sequence[str], device: int = 0) -> str | None:
    """Why an engine built for these architectures cannot run on the GPU of this number.

    None if it may run, or if there is no such GPU to compare with. The target ``current`` says nothing about
    architectures.
    """
    gpu = find_gpus().gpu(device)
    if not targets or "current" in targets or gpu is None or gpu.sm in targets:
        return None
    return f"it was built for {', '.join(targets)}, the GPU here is {gpu.name} ({gpu.sm})"
