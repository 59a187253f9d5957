"""Reset a module to random weights, for methods that retrain the pruned net from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["initialise"]


def initialise(model: torch.nn.Module, seed: int) -> None:
    """Set every parameter and running statistic to the value of an untrained net, in place.

    A module of an exported program does not know what kind of layer a parameter belongs to, so its shape and its name
    decide:

    - weights of two or more dimensions: normal, mean 0, variance ``2 / (outputs · window)`` (He et al. 2015);
    - vectors named ``weight``, the scales of batch normalisation: one; other vectors, the biases: zero;
    - running means: zero; running variances: one.

    Args:
        model: any module.
        seed: seed of the random weights.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan = parameter.shape[0] * parameter[0, 0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5)
            else:
                parameter.fill_(1.0 if name.rpartition(".")[2] == "weight" else 0.0)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "num_batches_tracked")):
                buffer.zero_()
            elif name.endswith("running_var"):
                buffer.fill_(1)
