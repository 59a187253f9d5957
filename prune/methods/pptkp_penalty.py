"""PPT-KP's training: an L1 penalty whose intensity depends on the kernel's norm.

`trtkp.pruning.methods.pptkp` has the formula and its sources. With 2:4 inside the lists, the penalty acts on what the
lists drop only, not on what 2:4 drops.
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

#: Share of the strength on 1x1 layers, from code by the authors' group.
_POINTWISE = 0.6


class NormDependentL1(Regulariser):
    """The penalty on the kernels of the given layers. Breakpoints are quantiles of the norms at the start.

    Args:
        model: the module; its parameters have the names of the layers.
        layers: the layers to prune.
        method: the method, for its settings.
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
        """Make blocks and breakpoints from the present weights."""
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
        """After ``single_epochs`` go from single kernels to blocks; with ``cluster``, group filters again every epoch.

        Groups by the dense net's norms agree only by accident. Groups by the norms that the penalty has made do not.
        """
        if self._single:
            self._single = epoch < self._method.single_epochs
            if not self._single:
                self._begin(self._method)
        elif self._method.cluster:
            self._take(self._method.blocks(self._layers, layer_weights(self._model, self._layers)))

    def after_backward(self) -> None:
        """Without ``proximal``, add the penalty's subgradient ``lambda · gamma(a) · sign(w)`` to the gradients."""
        import torch

        if self._method.proximal:
            return
        with torch.no_grad():
            for layer in self._layers:
                parameter = self._parameters[layer.name]
                if parameter.grad is not None:
                    parameter.grad += self._pull(layer, parameter) * parameter.sign()

    def after_step(self, lr: float) -> None:
        """With ``proximal``, shrink each block w of n kernels; unlike the subgradient, this reaches exact zeros.

        ``w <- w · max(0, 1 - lr · lambda · gamma(a) · sqrt(n) / ||w||_2)``
        """
        import torch

        if not self._method.proximal:
            return
        with torch.no_grad():
            for layer in self._layers:
                parameter = self._parameters[layer.name]
                squares = self._pooled(layer, parameter.square().sum(dim=(2, 3)), mean=True)
                norms = self._spread(layer, squares.sqrt())  # ||w||_2 / sqrt(n): the mean of squares, not their sum
                shrink = (1 - lr * self._pull(layer, parameter) / norms.clamp_min(1e-30)).clamp_min(0)
                parameter.mul_(shrink)

    def _pull(self, layer: ConvLayer, parameter: torch.Tensor) -> torch.Tensor:
        """``lambda · gamma(a)`` of each kernel, [F, C, 1, 1].

        If all lists are to keep the same share, a norm is compared with the other norms of its list and not with the
        layer's breakpoints. Otherwise a list whose norms are all below the breakpoints would be pushed to zero, and
        with it the kernels that it has to keep.
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
        """The sum or mean of each block, [filter groups, channel blocks], from values [F, C]."""
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
        """Give each kernel the value of its block, [F, C, 1, 1]."""
        rows, columns = self._blocks[layer.name].shape
        if (rows, columns) != (layer.filters, layer.channels):
            group, block = (owner.to(values.device) for owner in self._owners[layer.name])
            values = values[group][:, block]
        return values[:, :, None, None]

    def masks(self) -> Masks:
        """The masks at the method's ratio or pruning point, in the blocks of the last epoch."""
        weights = layer_weights(self._model, self._layers)
        listed = list_weights(self._method, weights)
        # a training that ended within single_epochs has no blocks yet: make those that would have come next
        blocks = self._method.blocks(self._layers, weights) if self._single else self._blocks
        return self._method.masks_of_blocks(self._layers, listed, blocks)

    def state(self) -> dict[str, torch.Tensor]:
        """The breakpoints, the groups of filters, and whether the penalty still acts on single kernels."""
        import torch

        groups = {f"group.{name}": owners[0] for name, owners in self._owners.items()}
        taus = {f"tau.{name}": taus for name, taus in self.breakpoints.items()}
        return groups | taus | {"single": torch.tensor(self._single)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue with those."""
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
