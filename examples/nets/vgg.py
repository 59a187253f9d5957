"""VGG-16 for CIFAR-10 (Simonyan and Zisserman 2015, arXiv:1409.1556) with batch norm and a small classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.nets.layers import conv_bn, init_weights

__all__ = ["CifarVgg", "vgg16_cifar", "vgg16_cifar_single_fc"]

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class CifarVgg(nn.Module):
    """13 convolutions without bias in five stages, each with 2x2 pooling: ``[N, 3, 32, 32] -> [N, classes]``.

    Pooling takes the maximum, but the last one the average. ``hidden`` is the width of a fully connected layer with
    batch normalisation and ReLU before the classifier; 0 leaves it out.
    """

    def __init__(self, hidden: int = 512, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index, stage in enumerate(_STAGES):
            for width in stage:
                layers.extend(conv_bn(channels, width))
                channels = width
            layers.append(nn.AvgPool2d(2) if index == len(_STAGES) - 1 else nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        if hidden:
            self.classifier = nn.Sequential(
                nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes)
            )
        else:
            self.classifier = nn.Sequential(nn.Linear(channels, classes))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, 32, 32] -> [N, classes]``."""
        out: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return out


def vgg16_cifar() -> CifarVgg:
    """VGG-16 with FC 512-512-10: 14 987 722 parameters, 313 196 544 conv MACs, 267 264 FC MACs."""
    return CifarVgg()


def vgg16_cifar_single_fc() -> CifarVgg:
    """VGG-16 with a single FC 512-10, the variant of SWP (Meng et al. 2020, arXiv:2009.14410): 14 724 042 parameters.

    The count holds without convolution biases.
    """
    return CifarVgg(hidden=0)
