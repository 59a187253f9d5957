"""Nets for the demo, the tests and the benchmarks, and two functions that prepare nets.

Every module holds one family of nets, and every factory works without arguments, such as
``examples.nets.resnet:resnet50``:

- ``digits``: a small residual CNN for grayscale digits
- ``vgg``: VGG-16 for CIFAR-10 with two or one fully connected layers
- ``resnet``: ResNets for CIFAR-10 and for ImageNet
- ``mobile``: depthwise and grouped convolutions with squeeze-and-excite
- ``dense``: dense blocks with concatenation
- ``unet``: encoder and decoder with transposed convolutions and skips

Shapes passed to these functions leave out the batch: ``(C, H, W)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["export", "settle_batch_norm"]

Net = TypeVar("Net", bound=nn.Module)

_SETTLE_BATCHES = 4
_SETTLE_BATCH_SIZE = 8
_MAX_SIZE = 2048


def settle_batch_norm(model: Net, shape: Sequence[int], seed: int = 0) -> Net:
    """Set the batch-normalisation statistics to those of random data, and return ``model`` in evaluation mode.

    With the initial statistics (mean 0, variance 1), activations of a deep net with random weights grow from block to
    block. Here the running statistics become the mean over a few batches of normally distributed data.

    Args:
        model: the net; changed in place.
        shape: (C, H, W) of one sample.
        seed: seed of the data; the global random state is not used.
    """
    model.eval()
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    reference = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches, not a moving average
            layer.train()
        with torch.no_grad():
            for _ in range(_SETTLE_BATCHES):
                batch = torch.randn(_SETTLE_BATCH_SIZE, *shape, generator=generator)
                model(batch.to(reference))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.eval()
    return model


def export(
    model: nn.Module, shape: Sequence[int], batch: tuple[int, int] = (1, 64), size_step: int | None = None
) -> torch.export.ExportedProgram:
    """Export a net for inputs ``[N, C, H, W]`` with ``batch[0] <= N <= batch[1]``.

    Args:
        model: the net, in evaluation mode.
        shape: (C, H, W) of one sample.
        batch: smallest and largest batch. If they are equal, the batch is fixed.
        size_step: if given, H and W are dynamic too: any multiple of it, from two steps to 2048 pixels.

    Raises:
        ValueError: the net is in training mode, or ``batch`` is not a range.
    """
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"export needs eval mode, but {training[0]} is in training mode: call model.eval() first")
    low, high = batch
    if not 1 <= low <= high:
        raise ValueError(f"batch must be (low, high) with 1 <= low <= high, not {batch}")
    dims: dict[int, Any] = {}
    if low < high:
        dims[0] = torch.export.Dim("batch", min=low, max=high)
    if size_step is not None:
        for axis, name in ((2, "height"), (3, "width")):
            steps = torch.export.Dim(f"{name}_steps", min=2, max=_MAX_SIZE // size_step)
            dims[axis] = steps if size_step == 1 else size_step * steps
    # torch.export treats a size of 1 as a constant, so the example has two images if the batch may
    example = torch.zeros(min(high, max(low, 2)), *shape).to(next(model.parameters()))
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=(dims,) if dims else None)
