"""DPPNet's dynamic convolution as a module, the conversion of ordinary nets, the packing for export, and the costs.

`trtkp.pruning.methods.dppnet` has the formula and its sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from trtkp.errors import InputError
from trtkp.pruning.methods.dppnet_op import pattern_conv
from trtkp.pruning.regulariser import Regulariser

if TYPE_CHECKING:
    from trtkp.pruning.method import Masks

__all__ = [
    "Attention",
    "DynamicPatternConv2d",
    "LongTailedStep",
    "PackedPatternConv2d",
    "PatternCosts",
    "PatternPenalty",
    "convert",
    "costs_of",
    "dynamic_layers",
    "freeze",
    "pack",
    "use_patterns",
]


class LongTailedStep(torch.autograd.Function):
    """The step ``1[u > 0]`` with a long-tailed gradient: ``2 - 4|u|`` for ``|u| <= 0.4``, 0.4 up to 1, 0 beyond."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        """The step."""
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The long-tailed estimate of its gradient."""
        (u,) = ctx.saved_tensors
        size = u.abs()
        slope = torch.where(size <= 0.4, 2 - 4 * size, torch.where(size <= 1, 0.4, 0.0))
        return gradients[0] * slope


class Attention(nn.Module):
    """The attention A(x), ``[N, C, H, W] -> [N, P, O]``. It sums to one over the patterns and starts uniform.

    Args:
        channels: C.
        filters: O.
        patterns: P.
        temperature: T.
        generator: generator of the first layer's random weights, on the CPU.
    """

    def __init__(
        self, channels: int, filters: int, patterns: int, temperature: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        hidden = patterns if channels == 3 else channels // 4 + 1
        self.patterns, self.temperature = patterns, temperature
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.attend = nn.Linear(hidden, patterns * filters)
        nn.init.kaiming_uniform_(self.squeeze.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(self.attend.weight)
        nn.init.zeros_(self.attend.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The share of every pattern, per sample and filter."""
        logits = self.attend(self.squeeze(x.mean(dim=(2, 3))).relu())
        return (logits.unflatten(1, (self.patterns, -1)) / self.temperature).softmax(dim=1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of both matrix products, for one sample."""
        return self.squeeze.weight.numel() + self.attend.weight.numel()


class DynamicPatternConv2d(nn.Module):
    """A convolution whose kernel is a mix of patterns, different for every sample: ``[N, C, H, W] -> [N, O, P, Q]``.

    Args:
        conv: the ordinary convolution that it replaces; of one group.
        patterns: number of patterns, P.
        temperature: temperature of the attention's softmax, T.
        noise: standard deviation of the noise on each pattern, as a share of the standard deviation of the kernel.
        generator: generator of the noise and of the attention, on the CPU.

    Raises:
        InputError: the convolution is grouped, or it does not pad with a fixed number of zeros.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        patterns: int = 4,
        temperature: float = 0.5,
        noise: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise InputError("dynamic patterns are for convolutions of one group, padded with zeros")
        if patterns < 1 or temperature <= 0:
            raise InputError(f"{patterns} patterns at temperature {temperature}: at least one, and a positive one")
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.patterns = patterns
        kernel = conv.weight.detach()
        scatter = torch.randn((patterns, *kernel.shape), generator=generator).to(kernel) * kernel.std() * noise
        self.weight = nn.Parameter(kernel + scatter)  # [P, O, C, R, S]
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.attention = Attention(conv.in_channels, conv.out_channels, patterns, temperature, generator).to(kernel)
        self.theta = nn.Parameter(torch.zeros(patterns, conv.out_channels).to(kernel), requires_grad=False)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(patterns, *kernel.shape[2:]).to(kernel))
        self.learns_mask = False

    def pattern_masks(self) -> Tensor:
        """The masks M, [P, R, S]: learnt in the stage ``regularise``, otherwise the fixed ones of the buffer."""
        if not self.learns_mask:
            return self.mask
        excess = self.weight.abs().mean(dim=(1, 2)) - self.theta.mean(dim=1)[:, None, None]
        masks: Tensor = LongTailedStep.apply(excess.sigmoid() - 0.5)  # type: ignore[no-untyped-call]  # PyTorch's
        return masks

    def support(self) -> Tensor:
        """The union of the masks, bool [R, S]: the positions that every input reads."""
        return self.pattern_masks().detach().bool().any(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve every sample with its own kernel, as one grouped convolution with a group per sample."""
        weight = self.weight * self.pattern_masks()[:, None, None]
        dynamic = torch.einsum("npo,pocrs->nocrs", self.attention(x), weight)
        folded = conv2d(
            x.flatten(0, 1)[None], dynamic.flatten(0, 1), None, self.stride, self.padding, self.dilation, len(x)
        )
        out = folded[0].unflatten(0, (len(x), -1))
        return out if self.bias is None else out + self.bias[:, None, None]


class PackedPatternConv2d(nn.Module):
    """A trained `DynamicPatternConv2d` as one operator for export, ``torch.ops.trtkp.dynamic_pattern_conv``.

    Every pattern stores the positions of the union of the masks.

    Args:
        trained: the module, with fixed masks.
    """

    def __init__(self, trained: DynamicPatternConv2d) -> None:
        super().__init__()
        masked = (trained.weight * trained.pattern_masks()[:, None, None]).detach()
        patterns, filters, channels, rows, columns = masked.shape
        taps = trained.support().flatten().nonzero().flatten()
        packed = masked.flatten(3)[..., taps].transpose(2, 3)  # [P, O, T, C]
        self.weight = nn.Parameter(packed.reshape(patterns, filters, -1).contiguous())
        self.bias = nn.Parameter(masked.new_zeros(filters) if trained.bias is None else trained.bias.detach().clone())
        self.taps: Tensor
        self.register_buffer("taps", taps.int()[None])
        self.attention = trained.attention
        self._shape = [filters, channels, rows, columns]
        self._strides, self._dilations = _pair(trained.stride), _pair(trained.dilation)
        self._pads = _pair(trained.padding) * 2

    def forward(self, x: Tensor) -> Tensor:
        """See `trtkp.pruning.methods.dppnet_op.pattern_conv`."""
        return pattern_conv(
            x, self.weight, self.taps, self.attention(x), self.bias, self._shape, self._strides, self._pads,
            self._dilations,
        )  # fmt: skip


def convert(
    model: nn.Module,
    names: Sequence[str] | None = None,
    patterns: int = 4,
    temperature: float = 0.5,
    *,
    seed: int = 0,
    noise: float = 0.1,
) -> list[str]:
    """Replace convolutions of ``model`` by dynamic ones, in place.

    Args:
        model: any module.
        names: names of the convolution modules; None for all 3x3 convolutions of one group, except the net's first
            convolution.
        patterns: see `DynamicPatternConv2d`, as for ``temperature`` and ``noise``.
        temperature: likewise.
        seed: seed of noise and attention.
        noise: likewise.

    Returns:
        The names of the replaced modules.

    Raises:
        InputError: a name is not that of a convolution, or the convolution cannot be converted.
    """
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if names is None:
        names = [
            name for name, conv in list(convolutions.items())[1:] if conv.kernel_size == (3, 3) and conv.groups == 1
        ]
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        if name not in convolutions:
            known = ", ".join(list(convolutions)[:4]) + (", ..." if len(convolutions) > 4 else "")
            raise InputError(f"no convolution is called {name}", remedy=f"those that can be replaced are {known}")
        _replace(model, name, _dynamic_of(name, convolutions[name], patterns, temperature, noise, generator))
    return list(names)


def pack(model: nn.Module) -> None:
    """Turn every dynamic convolution of a trained net into one operator, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, DynamicPatternConv2d):
            _replace(model, name, PackedPatternConv2d(layer))


def _dynamic_of(
    name: str, conv: nn.Conv2d, patterns: int, temperature: float, noise: float, generator: torch.Generator
) -> DynamicPatternConv2d:
    try:
        return DynamicPatternConv2d(conv, patterns, temperature, noise, generator)
    except InputError as error:
        raise InputError(error.message, layer=name) from None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, module)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def use_patterns(model: nn.Module) -> None:
    """Begin the stage ``regularise``: masks follow from weights and thresholds, and the thresholds are trained."""
    for layer in dynamic_layers(model).values():
        layer.learns_mask = True
        layer.theta.requires_grad_(True)


def freeze(model: nn.Module) -> Masks:
    """Begin the stage ``finetune``: fix the masks.

    Returns:
        The masks for the trainer to hold, bool [P, O, C, R, S], by parameter name.

    Raises:
        InputError: nothing is left of a layer.
    """
    masks: Masks = {}
    for name, layer in model.named_modules():
        if isinstance(layer, DynamicPatternConv2d):
            with torch.no_grad():
                layer.mask.copy_(layer.pattern_masks())
            if not layer.mask.any():
                raise InputError("its patterns have no position left", layer=name, remedy="give a lower --alpha")
            layer.learns_mask = False
            layer.theta.requires_grad_(False)
            expanded = layer.mask.bool()[:, None, None].expand(layer.weight.shape)
            masks[f"{name}.weight"] = expanded.cpu().numpy().copy()
    return masks


class PatternPenalty(Regulariser):
    """The loss term of the stage ``regularise``, ``alpha · sum exp(-theta)``, which raises the thresholds.

    Args:
        model: a converted net. Its masks are learnt from now on.
        alpha: weight of the term; larger is sparser. The authors use 8e-6 for ResNet-34 on ImageNet.
    """

    def __init__(self, model: nn.Module, alpha: float = 1e-4) -> None:
        use_patterns(model)
        self._model, self._alpha = model, alpha

    def loss(self) -> Tensor:
        """The term, a scalar tensor."""
        return (
            self._alpha
            * torch.stack([layer.theta.neg().exp().sum() for layer in dynamic_layers(self._model).values()]).sum()
        )

    def masks(self) -> Masks:
        """See `freeze`."""
        return freeze(self._model)

    def report(self) -> dict[str, float]:
        """``support``, the share of positions in the union of the masks, averaged over the layers."""
        shares = [layer.support().float().mean() for layer in dynamic_layers(self._model).values()]
        return {"support": float(torch.stack(shares).mean())}


@dataclass(frozen=True)
class PatternCosts:
    """Multiply-accumulates of one sample.

    Attributes:
        dense: MACs of the dynamic layers as ordinary convolutions that read all positions.
        kept: MACs of these layers when they read the union of the masks.
        other: MACs of the other convolutions and the fully connected layers.
        attention: MACs of both matrix products of every attention.
        aggregation: MACs of mixing the patterns into kernels.
    """

    dense: int
    kept: int
    other: int
    attention: int
    aggregation: int

    @property
    def removed(self) -> tuple[Fraction, Fraction, Fraction]:
        """Three shares of MACs that are removed.

        They are: of the dynamic layers, of the whole net, and of the whole net with attention and aggregation counted.
        We do not know which of them the published 65.6 % for ResNet-34 is.
        """
        total, overhead = self.dense + self.other, self.attention + self.aggregation
        gone = self.dense - self.kept
        return Fraction(gone, self.dense), Fraction(gone, total), Fraction(gone - overhead, total)


def costs_of(pixels: Mapping[DynamicPatternConv2d, int], other: int) -> PatternCosts:
    """The costs of a net with dynamic layers.

    Args:
        pixels: for each dynamic layer, the number of output pixels of one sample, P·Q.
        other: MACs of the rest of the net.
    """
    dense = kept = attention = aggregation = 0
    for layer, places in pixels.items():
        _, filters, channels, rows, columns = layer.weight.shape
        masks = layer.pattern_masks().detach()
        # a module on the meta device has no values, so its masks are unknown: count every position
        whole = masks.is_meta
        dense += filters * channels * rows * columns * places
        kept += filters * channels * (rows * columns if whole else int(layer.support().sum())) * places
        aggregation += filters * channels * (masks.numel() if whole else int(masks.sum()))
        attention += layer.attention.macs
    return PatternCosts(dense, kept, other, attention, aggregation)


def dynamic_layers(model: nn.Module) -> dict[str, DynamicPatternConv2d]:
    """The dynamic convolutions of a model, by the parameter name of their weight."""
    return {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, DynamicPatternConv2d)}
