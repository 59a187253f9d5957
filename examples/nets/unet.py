"""A small U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with padded convolutions, batch norm and LeakyReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.nets.layers import conv_bn, init_weights

__all__ = ["UNet", "unet"]


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.1)


def _double(cin: int, cout: int) -> nn.Sequential:
    """Two 3x3 convolutions: ``[N, cin, H, W] -> [N, cout, H, W]``."""
    return nn.Sequential(conv_bn(cin, cout, act=_leaky), conv_bn(cout, cout, act=_leaky))


class UNet(nn.Module):
    """Three times down and up with skips: ``[N, 3, H, W] -> [N, classes, H, W]``; H and W are multiples of 8."""

    def __init__(self, width: int = 16, classes: int = 2) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down1 = _double(3, width)
        self.down2 = _double(width, 2 * width)
        self.down3 = _double(2 * width, 4 * width)
        self.middle = _double(4 * width, 8 * width)
        self.grow3 = nn.ConvTranspose2d(8 * width, 4 * width, 2, stride=2)
        self.up3 = _double(8 * width, 4 * width)
        self.grow2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = _double(4 * width, 2 * width)
        self.grow1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = _double(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W] -> [N, classes, H, W]``."""
        skip1 = self.down1(x)
        skip2 = self.down2(self.pool(skip1))
        skip3 = self.down3(self.pool(skip2))
        y = self.middle(self.pool(skip3))
        y = self.up3(torch.cat((skip3, self.grow3(y)), dim=1))
        y = self.up2(torch.cat((skip2, self.grow2(y)), dim=1))
        y = self.up1(torch.cat((skip1, self.grow1(y)), dim=1))
        out: Tensor = self.head(y)
        return out


def unet() -> UNet:
    """The U-Net with two output maps, for ``[N, 3, 64, 64]`` or any H and W that are multiples of 8."""
    return UNet()
