"""The digits net for the generated shapes: it reads colour, and its first convolution halves the image."""

from __future__ import annotations

from examples.nets.digits import DigitsCnn
from examples.nets.layers import conv_bn, init_weights

__all__ = ["shapes_cnn"]


def shapes_cnn(width: int = 32, classes: int = 10) -> DigitsCnn:
    """``[N, 3, 32, 32] -> [N, classes]``; the first two convolutions have stride 2."""
    net = DigitsCnn(width, classes)
    net.stem = conv_bn(3, width, stride=2)
    init_weights(net)
    return net
