"""The work of a lowering, in units of the dense layer: the interface between the lowerings and the cost model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Work", "filter_rate"]


#: Largest number of filters in a group, and the share of the dense rate that such a group is assumed to reach. Measured
#: with 4, 8, 16, 32 and 64 filters: 0.11, 0.41, 0.52, 0.72 and 0.93 (``benchmarks/results/grouped.json``: two AVX2
#: cores, 3x3 at 14x14). Most figures here are higher on purpose: a lowering that looks hopeless is not even timed.
_FILTER_RATES = ((7, 0.13), (15, 0.45), (31, 0.8))


def filter_rate(filters: int) -> float:
    """Share of the dense rate that a convolution, or one group of a grouped one, reaches with this many filters.

    Example:
        >>> filter_rate(8), filter_rate(64)
        (0.45, 1.0)
    """
    return next((rate for most, rate in _FILTER_RATES if filters <= most), 1.0)


@dataclass(frozen=True)
class Work:
    """The work of a lowering, relative to the dense layer.

    Attributes:
        macs: multiply-accumulates, as a share of the dense layer's.
        reads: how many times the whole input is read, intermediate copies of it included.
        writes: how many times the whole output is written or read back.
        kernels: number of kernels launched.
        efficiency: share of the dense convolution's rate that the lowering reaches.
    """

    macs: float
    reads: float = 1.0
    writes: float = 1.0
    kernels: int = 1
    efficiency: float = 1.0
