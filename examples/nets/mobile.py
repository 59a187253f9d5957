"""A mobile net: inverted residuals with squeeze-and-excite, and grouped residual blocks.

It is not a published net. It combines layer types of MobileNetV3 (Howard et al. 2019, arXiv:1905.02244), ResNeXt (Xie
et al. 2017, arXiv:1611.05431) and squeeze-and-excite (Hu et al. 2018, arXiv:1709.01507) in one net.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.nets.layers import conv_bn, init_weights

__all__ = ["GroupedBlock", "InvertedResidual", "MobileNetLike", "SqueezeExcite", "mobile_net_like"]


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the channel means: ``[N, C, H, W] -> [N, C, H, W]``."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU()
        self.excite = nn.Conv2d(channels // reduction, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        scale: Tensor = self.gate(self.excite(self.relu(self.squeeze(self.pool(x)))))
        return x * scale


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise ``kernel`` x ``kernel``, squeeze-and-excite, linear 1x1 projection.

    ``[N, cin, H, W] -> [N, cout, H / stride, W / stride]``, with a residual add where the shapes agree.
    """

    def __init__(
        self, cin: int, cout: int, stride: int, act: Callable[[], nn.Module], kernel: int = 3, expansion: int = 4
    ) -> None:
        super().__init__()
        width = expansion * cin
        self.expand = conv_bn(cin, width, 1, act=act)
        self.depthwise = conv_bn(width, width, kernel, stride=stride, groups=width, act=act)
        self.se = SqueezeExcite(width)
        self.project = conv_bn(width, cout, 1, act=None)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """``[N, cin, H, W] -> [N, cout, H / stride, W / stride]``."""
        y: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class GroupedBlock(nn.Module):
    """Two 3x3 convolutions, the first grouped, with a residual add: ``[N, C, H, W] -> [N, C, H, W]``."""

    def __init__(self, channels: int, groups: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.grouped = conv_bn(channels, channels, groups=groups, act=act)
        self.dense = conv_bn(channels, channels, act=None)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        out: Tensor = self.act(x + self.dense(self.grouped(x)))
        return out


class MobileNetLike(nn.Module):
    """SiLU in the early and HardSwish in the late layers: ``[N, 3, 96, 96] -> [N, classes]``."""

    def __init__(self, classes: int = 100) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, stride=2, act=nn.SiLU)
        self.blocks = nn.Sequential(
            InvertedResidual(16, 24, 2, nn.SiLU),
            InvertedResidual(24, 24, 1, nn.SiLU),
            InvertedResidual(24, 64, 2, nn.SiLU, kernel=5),
            GroupedBlock(64, 4, nn.SiLU),
            InvertedResidual(64, 64, 1, nn.Hardswish, kernel=5),
            InvertedResidual(64, 128, 2, nn.Hardswish),
            GroupedBlock(128, 8, nn.Hardswish),
            InvertedResidual(128, 128, 1, nn.Hardswish),
        )
        self.head = conv_bn(128, 512, 1, act=nn.Hardswish)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(512, 512)
        self.act = nn.Hardswish()
        self.fc = nn.Linear(512, classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W] -> [N, classes]``."""
        x = self.pool(self.head(self.blocks(self.stem(x))))
        x = self.act(self.hidden(torch.flatten(x, 1)))
        out: Tensor = self.fc(x)
        return out


def mobile_net_like() -> MobileNetLike:
    """The mobile net with 100 classes, for ``[N, 3, 96, 96]``."""
    return MobileNetLike()
