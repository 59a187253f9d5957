"""ResNets for CIFAR-10 and ImageNet (He et al. 2016, arXiv:1512.03385).

The ImageNet nets use the common parameter names (``conv1``, ``bn1``, ``layer1.0.conv1``, ``layer1.0.downsample.0``,
``fc``) and put the stride of a bottleneck block on its 3x3 convolution. The CIFAR nets use the same names without
``layer4``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.nets.layers import init_weights

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "PadShortcut",
    "ResNet",
    "resnet18",
    "resnet20_cifar",
    "resnet32_cifar",
    "resnet34",
    "resnet50",
    "resnet56_cifar",
    "resnet110_cifar",
]

Option = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Option A: a shortcut without parameters, ``[N, cin, H, W] -> [N, cout, ceil(H / stride), ceil(W / stride)]``.

    Takes every ``stride``-th pixel and appends zero channels, half of them on either side.
    """

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (cout - cin) // 2
        self.after = cout - cin - self.before

    def forward(self, x: Tensor) -> Tensor:
        """``[N, cin, H, W] -> [N, cout, ceil(H / stride), ceil(W / stride)]``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))


def _shortcut(cin: int, cout: int, stride: int, option: Option) -> nn.Module | None:
    """The shortcut of a block; None where the identity fits."""
    if stride == 1 and cin == cout:
        return None
    if option == "A":
        return PadShortcut(cin, cout, stride)
    if option == "B":
        return nn.Sequential(nn.Conv2d(cin, cout, 1, stride=stride, bias=False), nn.BatchNorm2d(cout))
    raise ValueError(f"option must be 'A' or 'B', not {option!r}")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[N, cin, H, W] -> [N, width, H / stride, W / stride]``."""

    expansion = 1

    def __init__(self, cin: int, width: int, stride: int = 1, option: Option = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(cin, width, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, cin, H, W] -> [N, width, H / stride, W / stride]``."""
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + skip)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: ``[N, cin, H, W] -> [N, 4 * width, H / stride, W / stride]``."""

    expansion = 4

    def __init__(self, cin: int, width: int, stride: int = 1, option: Option = "B") -> None:
        super().__init__()
        cout = self.expansion * width
        self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(cin, cout, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, cin, H, W] -> [N, 4 * width, H / stride, W / stride]``."""
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.bn3(self.conv3(y)) + skip)
        return out


def _stage(
    block: type[BasicBlock | Bottleneck], cin: int, width: int, depth: int, stride: int, option: Option = "B"
) -> nn.Sequential:
    """``depth`` blocks, the first with ``stride``."""
    blocks = [block(cin, width, stride, option)]
    blocks += [block(block.expansion * width, width, 1, option) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """ImageNet ResNet: ``[N, 3, H, W] -> [N, classes]``; ``depths`` counts the blocks of the four stages."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: tuple[int, int, int, int], classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        k = block.expansion
        self.layer1 = _stage(block, 64, 64, depths[0], 1)
        self.layer2 = _stage(block, 64 * k, 128, depths[1], 2)
        self.layer3 = _stage(block, 128 * k, 256, depths[2], 2)
        self.layer4 = _stage(block, 256 * k, 512, depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * k, classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W] -> [N, classes]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


class CifarResNet(nn.Module):
    """CIFAR ResNet with ``6 * depth + 2`` layers of 16, 32 and 64 channels: ``[N, 3, 32, 32] -> [N, classes]``."""

    def __init__(self, depth: int, option: Option = "A", classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(BasicBlock, 16, 16, depth, 1, option)
        self.layer2 = _stage(BasicBlock, 16, 32, depth, 2, option)
        self.layer3 = _stage(BasicBlock, 32, 64, depth, 2, option)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, 32, 32] -> [N, classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


def resnet18() -> ResNet:
    """ImageNet ResNet-18: 11 689 512 parameters, 1 814 073 344 MACs at 224x224."""
    return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet34() -> ResNet:
    """ImageNet ResNet-34: 21 797 672 parameters, 3 663 761 408 MACs at 224x224."""
    return ResNet(BasicBlock, (3, 4, 6, 3))


def resnet50() -> ResNet:
    """ImageNet ResNet-50: 25 557 032 parameters, 4 089 184 256 MACs at 224x224."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


def resnet20_cifar(option: Option = "A") -> CifarResNet:
    """CIFAR ResNet-20: 269 722 parameters, 40 551 040 MACs (option A)."""
    return CifarResNet(3, option)


def resnet32_cifar(option: Option = "A") -> CifarResNet:
    """CIFAR ResNet-32: 464 154 parameters, 68 862 592 MACs (option A)."""
    return CifarResNet(5, option)


def resnet56_cifar(option: Option = "A") -> CifarResNet:
    """CIFAR ResNet-56: 853 018 parameters, 125 485 696 MACs (option A)."""
    return CifarResNet(9, option)


def resnet110_cifar(option: Option = "A") -> CifarResNet:
    """CIFAR ResNet-110: 1 727 962 parameters, 252 887 680 MACs (option A)."""
    return CifarResNet(18, option)
