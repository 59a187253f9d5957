"""Channel pruning with torch-pruning, a baseline: it removes whole channels and leaves a smaller dense net.

Everything that depends on a channel is removed with it: the filter that outputs it, its batch normalisation, the
kernels that read it, and the channels that an addition ties to it. The importance of a channel is the L1 norm of all of
these together (``MagnitudeImportance`` of torch-pruning). The output classes of the net stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.machine.packages import require
from trtkp.pruning.method import Masks, Method
from trtkp.pruning.options import Allocation, RoundTo
from trtkp.pruning.regulariser import Deployed
from trtkp.settings import Setting, check

if TYPE_CHECKING:
    import torch

__all__ = ["Channels"]


@dataclass(frozen=True)
class Channels(Method):
    """Remove the channels of smallest L1 norm.

    Scope: the output channels of every convolution; of those that are left out, they stay.
    """

    ratio: Annotated[
        float, Setting("Share of the channels to remove; MACs fall by about its square.", ge=0, lt=1, searched=True)
    ] = 0.5
    allocation: Allocation = "global"
    round_to: RoundTo = 1

    name = "channels"
    converts = True

    def __post_init__(self) -> None:
        check(self)

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """None: every convolution has channels."""
        del layer
        return None

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Not available: the weights change their shapes, which a mask cannot say.

        Raises:
            InputError: always.
        """
        self.check_one_shot()

    def check_one_shot(self) -> NoReturn:
        """Not available: a build masks weights, and this method makes a smaller net.

        Raises:
            InputError: always.
        """
        raise InputError("--method channels makes a smaller net", remedy="use trtkp prune, then trtkp build")

    def convert(
        self, model: torch.fx.GraphModule, layers: Sequence[ConvLayer], example: Sequence[torch.Tensor], seed: int
    ) -> torch.fx.GraphModule:
        """The net without the removed channels.

        Raises:
            JobError: torch-pruning is not installed.
            InputError: torch-pruning cannot prune the net, or its output would change its shape.
        """
        import torch

        from trtkp.pruning.modules import with_modules

        del seed
        require("--method channels", "channels", {"torch_pruning": "torch-pruning"})
        import torch_pruning

        net, chosen = with_modules(model), {layer.name for layer in layers}
        stay = [
            module for name, module in net.named_modules()
            if isinstance(module, torch.nn.Linear)
            or (isinstance(module, torch.nn.Conv2d) and f"{name}.weight" not in chosen)
        ]  # fmt: skip
        try:
            shape = _output_shapes(net, example)
            torch_pruning.pruner.BasePruner(
                net, tuple(example), importance=torch_pruning.importance.MagnitudeImportance(p=1),
                pruning_ratio=self.ratio, global_pruning=self.allocation == "global", ignored_layers=stay,
                round_to=self.round_to,
            ).step()  # fmt: skip
            after = _output_shapes(net, example)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"torch-pruning cannot prune the net ({reason[:200]})") from None
        if after != shape:
            raise InputError(
                f"without those channels the net gives {after[0]}, not {shape[0]}",
                remedy="leave the last convolution out with --skip",
            )
        return net

    def deployed(self, model: torch.nn.Module, layers: Sequence[ConvLayer], macs: int) -> Deployed:
        """Nothing to do: the smaller net is exported as it is."""
        del model, layers, macs
        return Deployed({}, {}, {})


def _output_shapes(net: torch.fx.GraphModule, example: Sequence[torch.Tensor]) -> list[list[int]]:
    import torch

    with torch.no_grad():
        out = net(*example)
    return [list(value.shape) for value in torch.utils._pytree.tree_leaves(out)]
