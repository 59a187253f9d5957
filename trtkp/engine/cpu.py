"""How many CPU threads are worth starting here."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["allowed_cpus", "usable_cores"]

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


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
