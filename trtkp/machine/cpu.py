"""The CPU: how many threads are worth starting, how wide its vectors are, and its name."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path

__all__ = ["allowed_cpus", "cpu_name", "usable_cores", "vector_floats"]

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPUINFO = Path("/proc/cpuinfo")


def allowed_cpus() -> frozenset[int]:
    """Logical CPUs that this process may run on: its affinity mask if the system has one, else all of them."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Number of physical cores among the allowed CPUs, or the container's CPU quota if that is less; at least 1.

    Two hyper-threads share the multipliers of one core, so a second thread on a core only slows convolutions down.
    Threads beyond the quota are stopped in the middle of a layer, and the others wait for them.
    """
    cores = len({_core_of(cpu) for cpu in allowed_cpus()})
    quota = _quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _core_of(cpu: int) -> str:
    """A key that the hyper-threads of one core share; the CPU's own number if the system does not say."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip() or str(cpu)
    except OSError:
        return str(cpu)


def _quota() -> float | None:
    """Number of CPUs whose time the control group (version 2) allows; None without a limit."""
    try:
        quota, period = _QUOTA.read_text().split()[:2]
        return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        return None


def vector_floats() -> int:
    """Channels in a block of ONNX Runtime's NCHWc layout on this CPU: 8 on x86 without AVX-512, else 16.

    On x86 it is the number of floats in a vector. Without ``/proc/cpuinfo`` it is taken to be 16.
    """
    flags = _flags()
    if flags is None:
        return 16
    return 16 if "avx512f" in flags else 8


@cache
def _flags() -> frozenset[str] | None:
    """Instruction sets of an x86 CPU; None on other CPUs, or if the system does not say."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)


def cpu_name() -> str:
    """The CPU's model, or its architecture if the system does not say."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
