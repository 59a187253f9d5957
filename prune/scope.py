"""Reasons why a method cannot prune a layer, or leaves it dense by default; None where there is no reason."""

from __future__ import annotations

from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import MAX_TAPS

__all__ = ["beyond_lists", "no_element_to_drop", "no_kernel_to_drop", "stem_or_depthwise", "stem_or_pointwise"]


def beyond_lists(layer: ConvLayer) -> str | None:
    """The kernel has more taps than an index set can hold (one bit of a 64-bit word per tap)."""
    if layer.taps > MAX_TAPS:
        return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: index sets hold at most {MAX_TAPS} taps"
    return None


def no_kernel_to_drop(layer: ConvLayer) -> str | None:
    """For methods that choose kernels: with one kernel per filter there is nothing to choose."""
    return "one channel per filter: no kernel can go" if layer.channels == 1 else beyond_lists(layer)


def no_element_to_drop(layer: ConvLayer) -> str | None:
    """For methods that choose elements of a kernel plane: a plane of one element has nothing to drop."""
    return "1x1 kernel: a plane of one element has nothing to drop" if layer.taps == 1 else beyond_lists(layer)


def stem_or_depthwise(layer: ConvLayer) -> str | None:
    """Skip the first layer, and depthwise layers: they have few MACs, and each of their weights matters much."""
    return "stem" if layer.stem else "depthwise" if layer.depthwise else None


def stem_or_pointwise(layer: ConvLayer, *, pointwise: bool) -> str | None:
    """Skip the first layer, and 1x1 layers unless ``pointwise`` is set."""
    return "stem" if layer.stem else "1x1 kernel" if layer.taps == 1 and not pointwise else None
