"""Begin anew: the weights of any module as an untrained net has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["initialise"]


def initialise(model: torch.nn.Module, seed: int) -> None:
    """Set every parameter and running statistic by its shape and name, as modules of exported programs know no more.

    Weights of two or more dimensions are normal with variance ``2 / (outputs · window)`` (He et al. 2015), vectors
    named ``weight`` one, other vectors zero; running means zero, variances one.
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
