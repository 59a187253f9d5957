"""What a lowering does, in units of the dense layer: the interface between lowerings and the cost model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Work", "filter_rate"]


#: Share of the dense rate that a filter group of at most so many filters reaches, at its best: alone, with the copies
#: around it, it is less (``benchmarks/results/grouped.json``), but what looks hopeless here is not even timed.
_FILTER_RATES = ((7, 0.13), (15, 0.45), (31, 0.8))


def filter_rate(filters: int) -> float:
    """Share of the dense rate of a convolution, or a group of one, with so few filters."""
    return next((rate for most, rate in _FILTER_RATES if filters <= most), 1.0)


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
