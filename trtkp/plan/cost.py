"""Predicted time of a layer's forms on a GPU, for where nothing can be timed.

A roofline over a typical Ampere-class card: arithmetic and memory traffic overlap, kernel launches do not,

    time = max(MACs / rate, bytes / bandwidth) + kernels · launch.

The constants are round figures of that class, *not measured here*; ratios between the forms of one layer depend on them
only where a layer turns from arithmetic to memory or launches. Plans made with them are marked ``unmeasured``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from trtkp.shapes import Shape

__all__ = ["BANDWIDTH", "LAUNCH_S", "MAC_RATE", "Work", "predicted_time"]

#: Sustained multiply-accumulates per second by bytes of the type: fp16 on tensor cores, fp32 without TF32.
MAC_RATE = {2: 40e12, 4: 8e12}
#: Sustained bytes per second.
BANDWIDTH = 500e9
#: Seconds from the end of one kernel to useful work of the next.
LAUNCH_S = 3e-6


@dataclass(frozen=True)
class Work:
    """What a form does, in units of the dense layer's own.

    Attributes:
        macs: multiply-accumulates as a share of the dense layer's.
        reads: times the whole input is read, intermediate copies of it included.
        writes: times the whole output is written or read back.
        kernels: kernels launched.
        efficiency: of the dense convolution's matrix rate, what this form reaches.
    """

    macs: float
    reads: float = 1.0
    writes: float = 1.0
    kernels: int = 1
    efficiency: float = 1.0


def predicted_time(
    work: Work, weight_shape: tuple[int, int, int, int], source: Shape, target: Shape, itemsize: int
) -> float:
    """Seconds for a layer with weight [F, C, R, S], input ``source`` and output ``target`` [N, C, H, W]."""
    dense_macs = prod(weight_shape[1:]) * prod(target)
    arithmetic = work.macs * dense_macs / (MAC_RATE[itemsize] * work.efficiency)
    traffic = itemsize * (work.reads * prod(source) + work.writes * prod(target) + work.macs * prod(weight_shape))
    return max(arithmetic, traffic / BANDWIDTH) + work.kernels * LAUNCH_S
