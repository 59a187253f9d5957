"""Predicted time of a layer's forms: decides where nothing can be timed, and what is worth timing where it can.

A roofline: arithmetic and memory traffic overlap on a GPU, kernel launches do not,

    time = max(MACs / rate, bytes / bandwidth) + kernels · launch,

and on a CPU nothing overlaps: the maximum is a sum there. Plans made with these times are marked ``unmeasured``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from trtkp.plan.lowerings.work import Work
from trtkp.shapes import Shape

__all__ = ["CPU", "GPU", "Machine", "predicted_time"]


@dataclass(frozen=True)
class Machine:
    """Round figures of a class of machines; ratios between the forms of one layer depend on them only a little.

    Attributes:
        mac_rate: sustained multiply-accumulates per second of a dense convolution.
        bandwidth: sustained bytes per second.
        launch_s: seconds from the end of one kernel to useful work of the next.
        overlaps: arithmetic and traffic run at the same time.
    """

    mac_rate: float
    bandwidth: float
    launch_s: float
    overlaps: bool


#: An Ampere-class card by bytes of the type, fp16 on tensor cores and fp32 without TF32; *not measured here*.
GPU = {2: Machine(40e12, 500e9, 3e-6, True), 4: Machine(8e12, 500e9, 3e-6, True)}
#: Two AVX2 cores in ONNX Runtime, assumed: their ratios say which forms are worth timing, and no more.
CPU = Machine(41e9, 5e9, 2e-5, False)


def predicted_time(
    work: Work, weight_shape: tuple[int, int, int, int], source: Shape, target: Shape, itemsize: int, machine: Machine
) -> float:
    """Seconds for a layer with weight [F, C, R, S], input ``source`` and output ``target`` [N, C, H, W]."""
    dense_macs = prod(weight_shape[1:]) * prod(target)
    arithmetic = work.macs * dense_macs / (machine.mac_rate * work.efficiency)
    traffic = itemsize * (work.reads * prod(source) + work.writes * prod(target) + work.macs * prod(weight_shape))
    busy = (arithmetic, traffic / machine.bandwidth)
    return (max(busy) if machine.overlaps else sum(busy)) + work.kernels * machine.launch_s
