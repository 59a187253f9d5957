"""How many CPU threads are worth starting here."""

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
    """Logical CPUs that this process may run on (its affinity mask where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Physical cores among the allowed CPUs, or the container's CPU quota where that is less; at least 1.

    Two hyper-threads share one core's multipliers, so a second thread on a core only gets in the way of convolutions;
    and more threads than the quota allows are stopped in the middle of a layer while the others wait for them.
    """
    cores = len({_core_of(cpu) for cpu in allowed_cpus()})
    quota = _quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _core_of(cpu: int) -> str:
    """A key that hyper-threads of one core share; the CPU's own number where the system does not say."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip() or str(cpu)
    except OSError:
        return str(cpu)


def _quota() -> float | None:
    """CPUs' worth of time that the control group (version 2) allows; None without a limit."""
    try:
        quota, period = _QUOTA.read_text().split()[:2]
        return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        return None


def vector_floats() -> int:
    """Floats of this CPU's vectors as ONNX Runtime's convolutions use them: 16 with AVX-512, else 8 on x86, else 16."""
    flags = _flags()
    if flags is None:
        return 16
    return 16 if "avx512f" in flags else 8


@cache
def _flags() -> frozenset[str] | None:
    """Instruction sets of an x86 CPU; None where the system does not say."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)


def cpu_name() -> str:
    """The CPU's model, or its architecture where the system does not say."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
