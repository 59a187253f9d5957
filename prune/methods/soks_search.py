"""SOKS's search: trainable coefficient matrices on the convolutions of a module.

`trtkp.pruning.methods.soks` has the formula and its sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.pruning.granularity import Blocks
from trtkp.pruning.method import Masks
from trtkp.pruning.methods.soks import SOKS
from trtkp.pruning.regulariser import Regulariser, layer_parameters, layer_weights

if TYPE_CHECKING:
    import torch

__all__ = ["CoefficientSearch"]


class CoefficientSearch(Regulariser):
    """Computes every layer with ``W~ = A o W``, as a parametrisation of its weight, until `finish` folds A into W.

    Args:
        model: the module; its parameters have the names of the layers.
        layers: the layers to search.
        method: the method, for its settings.

    Raises:
        InputError: two modules share a weight.
    """

    def __init__(self, model: torch.nn.Module, layers: Sequence[ConvLayer], method: SOKS) -> None:
        import torch
        from torch.nn.utils import parametrize

        self._layers, self._method = list(layers), method
        weights, parameters = layer_weights(model, layers), layer_parameters(model, layers)
        names = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
        self._blocks: dict[str, Blocks] = {}
        self._owners: dict[str, tuple[torch.nn.Module, str]] = {}
        self._orders: dict[str, list[str]] = {}
        self.coefficients: dict[str, torch.nn.Parameter] = {}
        costs = {layer.name: _cost(layer, method.cost) for layer in layers}
        mean = sum(costs.values()) / max(1, len(costs))
        self._cost = {name: cost / mean for name, cost in costs.items()}

        class Scaled(torch.nn.Module):
            """``A o W``."""

            def __init__(self, group: torch.Tensor, shape: tuple[int, int, int]) -> None:
                super().__init__()
                self.coefficients = torch.nn.Parameter(torch.ones(shape, device=group.device))
                self.group: torch.Tensor
                self.register_buffer("group", group)

            def forward(self, weight: torch.Tensor) -> torch.Tensor:
                return weight * self.coefficients[self.group][:, None]

        for layer in layers:
            parameter = parameters[layer.name]
            if names.count(id(parameter)) > 1:
                raise InputError("two modules share it", layer=layer.name, remedy="leave it out with --skip")
            blocks = method.blocks(layer, weights[layer.name])
            owner, _, attribute = layer.name.rpartition(".")
            module = model.get_submodule(owner)
            group = torch.from_numpy(blocks.group_of_filter).to(parameter.device)
            self._orders[layer.name] = list(module._parameters)
            scaled = Scaled(group, (blocks.shape[0], *layer.kernel))
            parametrize.register_parametrization(module, attribute, scaled)
            self._blocks[layer.name] = blocks
            self._owners[layer.name] = (module, attribute)
            self.coefficients[layer.name] = scaled.coefficients

    def loss(self) -> torch.Tensor:
        """The three terms, weighted: sparsity, margin and diversity."""
        import torch

        method = self._method
        terms = []
        for name, matrix in self.coefficients.items():
            rows = matrix.abs().flatten(1)  # [G, R·S]
            terms.append(method.sparsity * self._cost[name] * rows.sum())
            terms.append(-method.margin * rows.var(dim=1, correction=0).sum())
            if method.diversity and len(rows) > 1:
                directions = torch.nn.functional.normalize(rows, dim=1)
                # sum over pairs of cosines = (|sum of directions|² - sum of |directions|²) / 2: no G x G matrix
                total = (directions.sum(dim=0).square().sum() - directions.square().sum()) / 2
                terms.append(method.diversity * total)
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def after_backward(self) -> None:
        """For SWP, set coefficients that are not above the threshold to zero, and their gradients too."""
        import torch

        if not self._method.zeroes:
            return
        with torch.no_grad():
            for matrix in self.coefficients.values():
                above = matrix.abs() > self._method.threshold
                matrix.mul_(above)
                if matrix.grad is not None:
                    matrix.grad.mul_(above)

    def after_epoch(self, epoch: int) -> None:
        """With ``cluster``, group filters by the stripes that the search has made. The net computes the same as before.

        The matrix of a new group is the mean magnitude of the matrices that its filters had, and the quotient goes into
        their weights: ``A' o W' = A o W``. A new matrix that starts at 1 would forget the progress of the search after
        every epoch and never reach a threshold.
        """
        if not self._method.cluster:
            return
        folded = self._folded()
        for layer in self._layers:
            blocks = _numbered_alike(self._method.blocks(layer, folded[layer.name]), self._blocks[layer.name], layer)
            if (blocks.group_of_filter != self._blocks[layer.name].group_of_filter).any():
                self._regroup(layer, blocks)

    def _regroup(self, layer: ConvLayer, blocks: Blocks) -> None:
        """Give a layer new groups, in double precision on the CPU, so that all processes get the same numbers."""
        import torch

        parametrization, owner = self._parametrization(layer), blocks.group_of_filter
        scaled, weight = parametrization[0], parametrization.original
        with torch.no_grad():
            before = scaled.coefficients[scaled.group].double().cpu()  # of every filter, [F, R, S]
            means = torch.stack([before[owner == group].abs().mean(dim=0) for group in range(blocks.shape[0])])
            scaled.coefficients.copy_(means)
            scaled.group.copy_(torch.from_numpy(owner))
            after = means[owner]
            # where the mean is zero, all coefficients of the group are: W~ is zero whatever the quotient
            quotient = torch.where(after > 0, before / after, 1.0)
            weight.mul_(quotient[:, None].to(weight))
        self._blocks[layer.name] = blocks

    def masks(self) -> Masks:
        """The masks at the method's ratio, or by its threshold."""
        if self._method.ratio is None:
            scores = self._magnitudes()
        else:
            scores = self._method.scores(self._layers, self._folded(), self._blocks)
        return self._method.masks_of_scores(self._layers, scores, self._blocks, self._method.ratio)

    def finish(self) -> None:
        """Fold the coefficients into the weights, and remove the parametrisations."""
        from torch.nn.utils import parametrize

        for name, (module, attribute) in self._owners.items():
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
            # removal appends the weight; the old order matters, because checkpoints number an optimiser's parameters
            module._parameters = {part: module._parameters[part] for part in self._orders[name]}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue with the groups in the module's buffers; the coefficients are in the module's state too."""
        for layer in self._layers:
            group = self._parametrization(layer)[0].group
            self._blocks[layer.name] = _blocks_of_groups(layer, group.cpu().numpy())

    def report(self) -> dict[str, Any]:
        """``below_threshold``, the share of positions whose coefficient is not above the threshold."""
        shares = [1 - self._method.above_threshold(rows).mean() for rows in self._magnitudes().values()]
        return {"below_threshold": float(sum(shares) / max(1, len(shares)))}

    def _parametrization(self, layer: ConvLayer) -> Any:
        """PyTorch's parametrisation of a weight: item 0 has the coefficients, ``original`` is the weight W."""
        module, attribute = self._owners[layer.name]
        return module.parametrizations[attribute]  # type: ignore[index]

    def _folded(self) -> dict[str, npt.NDArray[Any]]:
        """The weights W~, with the coefficients folded in, float32 [F, C, R, S]."""
        return {name: getattr(module, attribute).detach().float().cpu().numpy()
                for name, (module, attribute) in self._owners.items()}  # fmt: skip

    def _magnitudes(self) -> dict[str, npt.NDArray[np.float64]]:
        """The magnitudes of the coefficients of each layer, [G, R·S]."""
        return {name: matrix.detach().abs().flatten(1).double().cpu().numpy()
                for name, matrix in self.coefficients.items()}  # fmt: skip


def _blocks_of_groups(layer: ConvLayer, group: npt.NDArray[np.int64]) -> Blocks:
    """Blocks over all channels with given filter groups; ``group`` has the group of each filter, [F]."""
    size, order = int(np.bincount(group).max()), np.argsort(group, kind="stable")
    return Blocks(layer.filters, layer.channels, layer.groups, size, layer.channels, order)


def _numbered_alike(blocks: Blocks, before: Blocks, layer: ConvLayer) -> Blocks:
    """Renumber new groups so that each has the number of the old group with which it shares most filters.

    The optimiser's momentum belongs to a number, so a group should keep its number. The numbering is greedy, and only
    groups of the same ONNX group and the same size can exchange numbers.
    """
    owner, count = blocks.group_of_filter, blocks.shape[0]
    shared = np.zeros((count, count), np.int64)
    np.add.at(shared, (owner, before.group_of_filter), 1)
    part, size = np.arange(count) * layer.groups // count, blocks.sizes[:, 0]
    shared[(part[:, None] != part) | (size[:, None] != size)] = -1
    number = np.zeros(count, np.int64)
    for _ in range(count):
        new, old = np.unravel_index(shared.argmax(), shared.shape)
        number[new] = old
        shared[new], shared[:, old] = -1, -1
    return _blocks_of_groups(layer, number[owner])


def _cost(layer: ConvLayer, kind: str) -> float:
    return {"none": 1.0, "params": float(layer.weight_count), "macs": float(layer.macs)}[kind]
