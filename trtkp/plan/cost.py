"""The cost model: the predicted time of each lowering of a layer.

Where the engine can run here, the prediction only says which lowerings are worth timing. Where it cannot, the
prediction decides, and the plan is marked ``unmeasured``.

The model is a roofline. On a GPU, arithmetic and memory traffic overlap, and kernel launches do not:

    time = max(MACs / rate, bytes / bandwidth) + kernels · launch

On a CPU nothing overlaps, so the maximum becomes a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from trtkp.plan.lowerings.work import Work
from trtkp.shapes import Shape

__all__ = ["CPU", "GPU", "Machine", "predicted_time"]


@dataclass(frozen=True)
class Machine:
    """Round figures for a class of machines.

    Only the ratios between the lowerings of one layer matter, and they depend little on these figures.

    Attributes:
        mac_rate: multiply-accumulates per second that a dense convolution sustains.
        bandwidth: sustained bytes per second of memory traffic.
        launch_s: seconds between the end of one kernel and the useful work of the next.
        overlaps: whether arithmetic and memory traffic run at the same time.
    """

    mac_rate: float
    bandwidth: float
    launch_s: float
    overlaps: bool


#: An Ampere-class card, by bytes per element: fp16 on tensor cores, fp32 without TF32. Round figures of no particular
#: card, *not measured*. They matter where a layer turns from arithmetic-bound to memory- or launch-bound: 3 µs a
#: launch keep small layers dense, because a lowering with more kernels than dense cannot win there.
GPU = {2: Machine(40e12, 500e9, 3e-6, True), 4: Machine(8e12, 500e9, 3e-6, True)}
#: Two AVX2 cores in ONNX Runtime. Assumed, and optimistic: ``benchmarks/results/grouped.json`` has 21 G MAC/s for a
#: dense 3x3 convolution on such cores. It only ranks the lowerings of a layer; those that look good are then timed.
CPU = Machine(41e9, 5e9, 2e-5, False)


def predicted_time(
    work: Work, weight_shape: tuple[int, int, int, int], source: Shape, target: Shape, itemsize: int, machine: Machine
) -> float:
    """Predicted seconds of one lowering of a layer.

    Args:
        work: what the lowering does, relative to the dense layer.
        weight_shape: [F, C, R, S] of the layer; C counts the channels of one ONNX group.
        source: shape of the input, [N, C, H, W].
        target: shape of the output, [N, F, P, Q].
        itemsize: bytes per element, 2 or 4.
        machine: rates to predict with, such as ``GPU[itemsize]`` or `CPU`.

    Example:
        A 1x1 layer that keeps a quarter of its MACs, at the price of a second kernel and a copy of its input:

        >>> dense, packed = Work(1.0), Work(0.25, reads=1.5, kernels=2)
        >>> shapes = (512, 512, 1, 1), (32, 512, 28, 28), (32, 512, 28, 28)
        >>> times = [predicted_time(work, *shapes, itemsize=4, machine=GPU[4]) for work in (dense, packed)]
        >>> round(times[0] / times[1], 1)
        3.1
    """
    dense_macs = prod(weight_shape[1:]) * prod(target)
    arithmetic = work.macs * dense_macs / (machine.mac_rate * work.efficiency)
    traffic = itemsize * (work.reads * prod(source) + work.writes * prod(target) + work.macs * prod(weight_shape))
    busy = (arithmetic, traffic / machine.bandwidth)
    return (max(busy) if machine.overlaps else sum(busy)) + work.kernels * machine.launch_s
