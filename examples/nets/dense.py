"""A small DenseNet (Huang et al. 2017, arXiv:1608.06993) with bottleneck layers and compressing transitions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.nets.layers import init_weights

__all__ = ["DenseLayer", "DenseNetLike", "dense_net_like"]


class DenseLayer(nn.Module):
    """BN-ReLU-Conv 1x1, BN-ReLU-Conv 3x3, appended to the input: ``[N, C, H, W] -> [N, C + growth, H, W]``."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(cin),
            nn.ReLU(),
            nn.Conv2d(cin, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C + growth, H, W]``."""
        return torch.cat((x, self.body(x)), dim=1)


class DenseNetLike(nn.Module):
    """Dense blocks of ``depths`` layers with transitions between: ``[N, 3, 64, 64] -> [N, classes]``."""

    def __init__(self, growth: int = 24, depths: tuple[int, ...] = (4, 6, 8), classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)]
        for index, depth in enumerate(depths):
            if index:
                layers.append(_transition(channels, channels // 2))
                channels //= 2
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W] -> [N, classes]``."""
        out: Tensor = self.fc(torch.flatten(self.pool(self.features(x)), 1))
        return out


def _transition(cin: int, cout: int) -> nn.Sequential:
    """BN-ReLU-Conv 1x1 and 2x2 average pooling: ``[N, cin, H, W] -> [N, cout, H / 2, W / 2]``."""
    return nn.Sequential(nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, cout, 1, bias=False), nn.AvgPool2d(2))


def dense_net_like() -> DenseNetLike:
    """The small DenseNet with 10 classes, for ``[N, 3, 64, 64]``."""
    return DenseNetLike()
