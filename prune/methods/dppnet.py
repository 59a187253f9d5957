r"""DPPNet: dynamic pattern-based pruning (CIKM 2022, doi 10.1145/3511808.3557225).

DPPNet gives every convolution P kernels, mixes them for each input, and learns which positions each of them keeps.

**From the authors' code.** A convolution holds P static kernels W_p. An attention mixes them per input and filter, and
a mask per pattern says which positions stay:

    A(x)  = softmax_p( U_2 relu(U_1 GAP(x)) / T ),       W(x)_o = sum_p A_{p,o}(x) · M_p o W_{p,o},       y = W(x) * x
    M_p   = 1[m_p > 0],        m_p = mean_{o,c} |W_p| - mean_o theta_{p,o}

with T = 0.5, a hidden width of ``floor(C / 4) + 1`` (P if C = 3), and theta 0 at the start. The gradient of the step
function is replaced by a long-tailed estimate: with ``u = sigmoid(m) - 1/2`` it is ``2 - 4 |u|`` for ``|u|`` up to 0.4,
and 0.4 from there to 1. The loss adds ``alpha sum exp(-theta)``. There are three stages: train the dynamic net without
masks (``prepare``), train it with masks (``regularise``), freeze the masks and fine-tune (``finetune``).

Every weight of the softmax is positive, so every input reads the same positions: the union of the masks. The values of
the kernels depend on the input; their sparsity does not.

**Ours.** The authors train the first stage from scratch. Here it starts from an ordinary net: each pattern is its
kernel with a little noise and the attention is uniform, so the converted net computes nearly the same.

**Different.** The authors also convert the 1x1 convolutions of bottlenecks, whose masks can only drop whole patterns.
Here these stay as they are.

`trtkp.pruning.methods.dppnet_module` has the module, its conversion and its costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet
from trtkp.pruning.method import Masks, Method
from trtkp.pruning.regulariser import Deployed
from trtkp.pruning.scope import no_element_to_drop, stem_or_depthwise
from trtkp.settings import Setting, check

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.methods.dppnet_module import PatternPenalty

__all__ = ["DPPNet"]


@dataclass(frozen=True)
class DPPNet(Method):
    """Learn P kernels per layer, the positions that each of them keeps, and an attention that mixes them per sample.

    Scope: 3x3 convolutions of one group but the stem; larger and smaller ones by name. The sparsity follows from
    ``alpha`` and the length of the training: there is no ratio to ask for.

    The authors take ``alpha`` 8e-6 for ResNet-34 on ImageNet.
    """

    patterns: Annotated[
        int, Setting("Static kernels of a convolution that attention chooses among.", ge=1, trained=True)
    ] = 4
    alpha: Annotated[float, Setting("Weight of the penalty in the loss; larger is sparser.", ge=0, trained=True)] = 1e-4
    temperature: Annotated[float, Setting("Temperature of the attention's softmax.", gt=0, trained=True)] = 0.5
    noise: Annotated[
        float,
        Setting(
            "Deviation of the patterns from the network's own kernel at the start, as a share of the kernel's.",
            ge=0,
            trained=True,
        ),
    ] = 0.1

    name = "dppnet"
    converts = True

    def __post_init__(self) -> None:
        check(self)

    def paper_index_bytes(self, index: IndexSet) -> int:
        """One bit per pattern and position."""
        return -(-self.patterns * index.shape[2] * index.shape[3] // 8)

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Grouped convolutions, because the attention reads the channels of the whole layer, and 1x1 kernels."""
        if layer.groups != 1:
            return f"{layer.groups} groups: dynamic patterns are for convolutions of one"
        return no_element_to_drop(layer)

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """The stem, depthwise layers, and kernels that are not 3x3."""
        size = f"{layer.kernel[0]}x{layer.kernel[1]} kernel"
        return stem_or_depthwise(layer) or (None if layer.kernel == (3, 3) else size)

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Not available without training: thresholds start at zero and then drop nothing.

        Raises:
            InputError: always.
        """
        self.check_one_shot()

    def check_one_shot(self) -> NoReturn:
        """Not available: patterns are learnt in training.

        Raises:
            InputError: always.
        """
        raise InputError(
            "--method dppnet learns its patterns", remedy="use trtkp prune with --data and --epochs, then trtkp build"
        )

    @property
    def regularises(self) -> bool:
        """Always: the masks are learnt together with the patterns."""
        return True

    def check_training(self, *, prepare: int, regularise: int, finetune: int) -> None:
        """Require the stage ``regularise``: without it there are no masks."""
        super().check_training(prepare=prepare, regularise=regularise, finetune=finetune)
        if not regularise:
            raise InputError("--method dppnet learns its patterns in training", remedy="give --data and --epochs")

    def convert(
        self, model: torch.fx.GraphModule, layers: Sequence[ConvLayer], example: Sequence[torch.Tensor], seed: int
    ) -> torch.fx.GraphModule:
        """The net with dynamic convolutions instead of the given layers.

        Raises:
            InputError: a convolution cannot be converted.
        """
        from trtkp.pruning.methods.dppnet_module import convert
        from trtkp.pruning.modules import with_modules

        del example
        net = with_modules(model, {layer.name for layer in layers})
        names = [layer.name.removesuffix(".weight") for layer in layers]
        convert(net, names, self.patterns, self.temperature, noise=self.noise, seed=seed)
        return net

    def deployed(self, model: torch.nn.Module, layers: Sequence[ConvLayer], macs: int) -> Deployed:
        """Turn every dynamic convolution into one operator; report the shares of MACs that this removes."""
        from trtkp.pruning.methods.dppnet_module import costs_of, dynamic_layers, pack

        dynamic = dynamic_layers(model)
        masks = {
            layer.name: np.broadcast_to(dynamic[layer.name].support().cpu().numpy(), layer.weight_shape).copy()
            for layer in layers
        }
        places = {dynamic[layer.name]: layer.macs // layer.weight_count for layer in layers}
        removed = costs_of(places, macs - sum(layer.macs for layer in layers)).removed
        pack(model)
        params = {layer.name: model.get_parameter(layer.name).numel() for layer in layers}
        named = zip(("layers", "net", "net_with_overhead"), map(float, removed), strict=True)
        return Deployed(masks, params, {"removed": dict(named)})

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> PatternPenalty:
        """The loss term of the stage ``regularise``. From now on the module's masks are learnt."""
        from trtkp.pruning.methods.dppnet_module import PatternPenalty

        del layers  # they are the module's dynamic convolutions
        return PatternPenalty(model, self.alpha)
