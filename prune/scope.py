"""What the methods say of a layer: why they cannot prune it, or leave it alone by default."""

from __future__ import annotations

from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import MAX_TAPS

__all__ = ["beyond_lists", "no_element_to_drop", "no_kernel_to_drop", "stem_or_depthwise", "stem_or_pointwise"]


def beyond_lists(layer: ConvLayer) -> str | None:
    """Index sets hold so many taps."""
    if layer.taps > MAX_TAPS:
        return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: index sets hold at most {MAX_TAPS} taps"
    return None


def no_kernel_to_drop(layer: ConvLayer) -> str | None:
    """Of methods that choose kernels: one kernel per filter leaves nothing to choose."""
    return "one channel per filter: no kernel can go" if layer.channels == 1 else beyond_lists(layer)


def no_element_to_drop(layer: ConvLayer) -> str | None:
    """Of methods that choose elements of a plane: a plane of one element has nothing to drop."""
    return "1x1 kernel: a plane of one element has nothing to drop" if layer.taps == 1 else beyond_lists(layer)


def stem_or_depthwise(layer: ConvLayer) -> str | None:
    """The first layer, and layers of few MACs with much in every position."""
    return "stem" if layer.stem else "depthwise" if layer.depthwise else None


def stem_or_pointwise(layer: ConvLayer, *, pointwise: bool) -> str | None:
    """The first layer, and 1x1 layers where they are switched off."""
    return "stem" if layer.stem else "1x1 kernel" if layer.taps == 1 and not pointwise else None
