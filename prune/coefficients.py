"""SOKS's search: coefficient matrices on the convolutions of a module (`prune.soks` has the formula)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.granularity import Blocks
from trtkp.prune.method import Masks
from trtkp.prune.regulariser import Regulariser, layer_parameters, layer_weights
from trtkp.prune.soks import SOKS

if TYPE_CHECKING:
    import torch

__all__ = ["CoefficientSearch"]


class CoefficientSearch(Regulariser):
    """Puts ``W~ = A o W`` on every layer (as a parametrisation of its weight) until `finish` folds A into W.

    Args:
        model: the module, whose parameters carry the layers' names.
        layers: to be searched.
        method: its settings.

    Raises:
        InputError: a weight that two modules share.
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
        """Sparsity, margin and diversity."""
        import torch

        method = self._method
        terms = []
        for name, matrix in self.coefficients.items():
            rows = matrix.abs().flatten(1)  # [G, R·S]
            terms.append(method.sparsity * self._cost[name] * rows.sum())
            terms.append(-method.margin * rows.var(dim=1, correction=0).sum())
            if method.diversity and len(rows) > 1:
                directions = torch.nn.functional.normalize(rows, dim=1)
                # the sum over pairs of cosines, without G² of them
                total = (directions.sum(dim=0).square().sum() - directions.square().sum()) / 2
                terms.append(method.diversity * total)
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def after_backward(self) -> None:
        """Zero the coefficients that are not above SWP's threshold, and their gradients."""
        import torch

        if not self._method.zeroes:
            return
        with torch.no_grad():
            for matrix in self.coefficients.values():
                above = matrix.abs() > self._method.threshold
                matrix.mul_(above)
                if matrix.grad is not None:
                    matrix.grad.mul_(above)

    def masks(self) -> Masks:
        """By the method's ratio, or by its threshold."""
        if self._method.ratio is None:
            scores = self._magnitudes()
        else:
            folded = {name: getattr(module, attribute).detach().float().cpu().numpy()
                      for name, (module, attribute) in self._owners.items()}  # fmt: skip
            scores = self._method.scores(self._layers, folded, self._blocks)
        return self._method.masks_of_scores(self._layers, scores, self._blocks, self._method.ratio)

    def finish(self) -> None:
        """Fold the coefficients into the weights, which keep their place among the parameters."""
        from torch.nn.utils import parametrize

        for name, (module, attribute) in self._owners.items():
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
            # an optimiser's state in a checkpoint goes by their order
            module._parameters = {part: module._parameters[part] for part in self._orders[name]}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """The groups that were trained with; coefficients are in the module's own state."""
        for layer in self._layers:
            module, attribute = self._owners[layer.name]
            group = module.parametrizations[attribute][0].group.cpu().numpy()  # type: ignore[union-attr, index]
            size = int(np.bincount(group).max())
            order = np.argsort(group, kind="stable")
            self._blocks[layer.name] = Blocks(layer.filters, layer.channels, layer.groups, size, layer.channels, order)

    def report(self) -> dict[str, Any]:
        """Share of positions whose coefficient is below the threshold."""
        shares = [1 - self._method.above_threshold(rows).mean() for rows in self._magnitudes().values()]
        return {"below_threshold": float(sum(shares) / max(1, len(shares)))}

    def _magnitudes(self) -> dict[str, npt.NDArray[np.float64]]:
        """Of the coefficients of every layer, [G, R·S]."""
        return {name: matrix.detach().abs().flatten(1).double().cpu().numpy()
                for name, matrix in self.coefficients.items()}  # fmt: skip


def _cost(layer: ConvLayer, kind: str) -> float:
    return {"none": 1.0, "params": float(layer.weight_count), "macs": float(layer.macs)}[kind]
