"""Parts that several nets share: convolution with batch norm and activation, and weight initialisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["conv_bn", "init_weights"]


def conv_bn(
    cin: int,
    cout: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias, padded to "same", then BN and ``act()``: ``[N, cin, H, W] -> [N, cout, H', W']``."""
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    if act is not None:
        layers.append(act())
    return nn.Sequential(*layers)


def init_weights(model: nn.Module) -> None:
    """Initialise all convolutions for ReLU-like activations (He et al. 2015, arXiv:1502.01852); biases become 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
