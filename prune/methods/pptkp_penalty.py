"""PPT-KP's training: an L1 penalty whose intensity depends on the kernel's norm (`methods.pptkp` has the formula).

With 2:4 inside the lists these alone are pushed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import Masks
from trtkp.pruning.granularity import Blocks
from trtkp.pruning.methods.pptkp import PPTKP, kernel_norms, pools
from trtkp.pruning.one_shot import list_weights
from trtkp.pruning.regulariser import Regulariser, layer_parameters, layer_weights

if TYPE_CHECKING:
    import torch

__all__ = ["NormDependentL1"]

#: Of the strength on 1x1 layers.
_POINTWISE = 0.6


class NormDependentL1(Regulariser):
    """The penalty on the kernels of some layers; breakpoints are those of the weights when it begins.

    Args:
        model: the module, whose parameters carry the layers' names.
        layers: to be pruned.
        method: its settings.
    """

    def __init__(self, model: torch.nn.Module, layers: Sequence[ConvLayer], method: PPTKP) -> None:
        import torch

        self._model, self._layers, self._method = model, list(layers), method
        self._parameters = layer_parameters(model, layers)
        self._gammas = torch.tensor(list(method.intensities), dtype=torch.float64)
        self.breakpoints: dict[str, torch.Tensor] = {}
        self._single = method.single_epochs > 0
        self._begin(replace(method, filter_group=1, channel_block=1) if self._single else method)

    def _begin(self, method: PPTKP) -> None:
        """Blocks and breakpoints of the weights as they are."""
        import torch

        weights = layer_weights(self._model, self._layers)
        self._take(method.blocks(self._layers, weights))
        for pool in pools(self._layers):
            norms = np.concatenate(
                [self._blocks[layer.name].mean(kernel_norms(weights[layer.name])).ravel() for layer in pool]
            )
            taus = torch.from_numpy(np.quantile(norms, list(method.quantiles)))
            self.breakpoints |= {layer.name: taus for layer in pool}

    def _take(self, blocks: dict[str, Blocks]) -> None:
        import torch

        self._blocks = blocks
        self._owners = {
            name: (torch.from_numpy(own.group_of_filter), torch.from_numpy(own.block_of_channel))
            for name, own in blocks.items()
        }

    def after_epoch(self, epoch: int) -> None:
        """Group filters by what the penalty has made of their norms: when their turn has come, and then again."""
        if self._single:
            self._single = epoch < self._method.single_epochs
            if not self._single:
                self._begin(self._method)
        elif self._method.cluster:
            self._take(self._method.blocks(self._layers, layer_weights(self._model, self._layers)))

    def after_backward(self) -> None:
        """Add ``lambda · gamma(a) · sign(w)`` to the gradients."""
        import torch

        if self._method.proximal:
            return
        with torch.no_grad():
            for layer in self._layers:
                parameter = self._parameters[layer.name]
                if parameter.grad is not None:
                    parameter.grad += self._pull(layer, parameter) * parameter.sign()

    def after_step(self, lr: float) -> None:
        """``w <- w · max(0, 1 - lr · lambda · gamma(a) · sqrt(n) / ||w||_2)``, norms over blocks of ``n`` kernels."""
        import torch

        if not self._method.proximal:
            return
        with torch.no_grad():
            for layer in self._layers:
                parameter = self._parameters[layer.name]
                squares = self._pooled(layer, parameter.square().sum(dim=(2, 3)), mean=True)
                norms = self._spread(layer, squares.sqrt())  # over sqrt(n)
                shrink = (1 - lr * self._pull(layer, parameter) / norms.clamp_min(1e-30)).clamp_min(0)
                parameter.mul_(shrink)

    def _pull(self, layer: ConvLayer, parameter: torch.Tensor) -> torch.Tensor:
        """``lambda · gamma(a)`` of every kernel, [F, C, 1, 1].

        Where all filters are to keep the same share, a norm is large or small among those of its list: a list
        whose norms are all below the breakpoints would lose what it keeps in the end.
        """
        import torch

        norms = self._pooled(layer, parameter.detach().abs().sum(dim=(2, 3)), mean=True)
        if self._method.equalise and self._method.allocation == "uniform":
            place = (norms.argsort(dim=1, stable=True).argsort(dim=1) + 1) / norms.shape[1]
            zone = torch.bucketize(place, place.new_tensor(list(self._method.quantiles)))
        else:
            zone = torch.bucketize(norms, self.breakpoints[layer.name].to(norms), right=True)
        strength = self._method.strength * (_POINTWISE if layer.taps == 1 else 1.0)
        return self._spread(layer, strength * self._gammas.to(norms)[zone])

    def _pooled(self, layer: ConvLayer, values: torch.Tensor, *, mean: bool = False) -> torch.Tensor:
        """Sum or mean over every block, from values [F, C]."""
        import torch

        blocks = self._blocks[layer.name]
        rows, columns = blocks.shape
        if (rows, columns) == tuple(values.shape):
            return values
        group, block = (owner.to(values.device) for owner in self._owners[layer.name])
        sums = values.new_zeros(rows, values.shape[1]).index_add(0, group, values)
        sums = sums.new_zeros(rows, columns).index_add(1, block, sums)
        return sums / torch.from_numpy(blocks.sizes).to(sums) if mean else sums

    def _spread(self, layer: ConvLayer, values: torch.Tensor) -> torch.Tensor:
        """The value of its block for every kernel, [F, C, 1, 1]."""
        rows, columns = self._blocks[layer.name].shape
        if (rows, columns) != (layer.filters, layer.channels):
            group, block = (owner.to(values.device) for owner in self._owners[layer.name])
            values = values[group][:, block]
        return values[:, :, None, None]

    def masks(self) -> Masks:
        """At the method's ratio or pruning point, in the blocks that the last epoch left."""
        weights = layer_weights(self._model, self._layers)
        listed = list_weights(self._method, weights)
        # those that are pushed, or would be next
        blocks = self._method.blocks(self._layers, weights) if self._single else self._blocks
        return self._method.masks_of_blocks(self._layers, listed, blocks)

    def state(self) -> dict[str, torch.Tensor]:
        """Breakpoints, groups of filters, and whether single kernels are pushed."""
        import torch

        groups = {f"group.{name}": owners[0] for name, owners in self._owners.items()}
        taus = {f"tau.{name}": taus for name, taus in self.breakpoints.items()}
        return groups | taus | {"single": torch.tensor(self._single)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on with those."""
        self._single = bool(state["single"])
        sizes = (1, 1) if self._single else (self._method.filter_group, self._method.channel_block)
        self._take({
            layer.name: Blocks(
                layer.filters, layer.channels, layer.groups, *sizes,
                np.argsort(state[f"group.{layer.name}"].numpy(), kind="stable"),
            )
            for layer in self._layers
        })  # fmt: skip
        self.breakpoints = {layer.name: state[f"tau.{layer.name}"] for layer in self._layers}
