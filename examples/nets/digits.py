"""A small residual CNN for grayscale digits, quick to train on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.nets.layers import conv_bn, init_weights

__all__ = ["DigitsCnn", "digits_cnn"]


class DigitsCnn(nn.Module):
    """Five 3x3 convolutions with BN, one residual add, global average pooling: ``[N, 1, 16, 16] -> [N, 10]``.

    The widths are ``width``, ``2 * width`` (three times) and ``4 * width``. Any input from 8x8 pixels on works.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn(1, width)
        self.down = conv_bn(width, 2 * width, stride=2)
        self.body1 = conv_bn(2 * width, 2 * width)
        self.body2 = conv_bn(2 * width, 2 * width, act=None)
        self.relu = nn.ReLU()
        self.head = conv_bn(2 * width, 4 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 1, H, W] -> [N, classes]``."""
        x = self.down(self.stem(x))
        x = self.relu(x + self.body2(self.body1(x)))
        x = self.pool(self.head(x))
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


def digits_cnn(width: int = 32) -> DigitsCnn:
    """The digits CNN with ``width`` channels in its first layer, for ``[N, 1, 16, 16]``."""
    return DigitsCnn(width)
