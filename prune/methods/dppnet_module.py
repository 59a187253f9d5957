"""DPPNet's module, what it learns, its conversion from ordinary nets and back to deployable ones, and its costs.

`pruning.methods.dppnet` has the formula.
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
    """``1[u > 0]`` forwards; backwards ``2 - 4|u|`` for ``|u| <= 0.4``, 0.4 up to 1, 0 beyond."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        """The step."""
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Its estimate."""
        (u,) = ctx.saved_tensors
        size = u.abs()
        slope = torch.where(size <= 0.4, 2 - 4 * size, torch.where(size <= 1, 0.4, 0.0))
        return gradients[0] * slope


class Attention(nn.Module):
    """A(x): ``[N, C, H, W] -> [N, P, O]``, sums to one over the patterns; uniform at the start.

    Args:
        channels: C.
        filters: O.
        patterns: P.
        temperature: T.
        generator: of the first product's weights, on the CPU.
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
        """Of both products, for one sample."""
        return self.squeeze.weight.numel() + self.attend.weight.numel()


class DynamicPatternConv2d(nn.Module):
    """A convolution whose kernel is put together for every sample: ``[N, C, H, W] -> [N, O, P, Q]``.

    Args:
        conv: the ordinary convolution it takes the place of, of one group.
        patterns: P.
        temperature: T.
        noise: deviation of the patterns about the kernel, as a share of the kernel's own.
        generator: of the noise and of the attention, on the CPU.

    Raises:
        InputError: a grouped convolution, or one that does not pad with zeros of a fixed size.
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
        """M, [P, R, S]: learnt in the second stage, otherwise what the buffer holds."""
        if not self.learns_mask:
            return self.mask
        excess = self.weight.abs().mean(dim=(1, 2)) - self.theta.mean(dim=1)[:, None, None]
        masks: Tensor = LongTailedStep.apply(excess.sigmoid() - 0.5)  # type: ignore[no-untyped-call]  # PyTorch's
        return masks

    def support(self) -> Tensor:
        """Positions that any input reads, bool [R, S]."""
        return self.pattern_masks().detach().bool().any(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """A convolution of its own for every sample, the batch folded into groups."""
        weight = self.weight * self.pattern_masks()[:, None, None]
        dynamic = torch.einsum("npo,pocrs->nocrs", self.attention(x), weight)
        folded = conv2d(
            x.flatten(0, 1)[None], dynamic.flatten(0, 1), None, self.stride, self.padding, self.dilation, len(x)
        )
        out = folded[0].unflatten(0, (len(x), -1))
        return out if self.bias is None else out + self.bias[:, None, None]


class PackedPatternConv2d(nn.Module):
    """A trained `DynamicPatternConv2d` as one operator, ``torch.ops.trtkp.dynamic_pattern_conv``, for export.

    Args:
        trained: with masks that are not learnt any more; every pattern keeps the positions of the union.
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
        """See `model.pattern_op`."""
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
    """Replace convolutions of ``model`` by dynamic ones, in place; gives the names of their modules.

    Without ``names`` those are all of 3x3 and one group but the first convolution.

    Raises:
        InputError: a name that is no convolution, or one that cannot be converted.
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
    """Make every dynamic convolution of a trained net one operator, in place."""
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
    """Begin the second stage: masks follow weights and thresholds, thresholds are trained."""
    for layer in dynamic_layers(model).values():
        layer.learns_mask = True
        layer.theta.requires_grad_(True)


def freeze(model: nn.Module) -> Masks:
    """Begin the third stage: masks stay as they are; gives them per weight [P, O, C, R, S], for the trainer to hold.

    Raises:
        InputError: a layer of which nothing is left.
    """
    masks: Masks = {}
    for name, layer in model.named_modules():
        if isinstance(layer, DynamicPatternConv2d):
            with torch.no_grad():
                layer.mask.copy_(layer.pattern_masks())
            if not layer.mask.any():
                raise InputError("every position of every pattern is gone", layer=name, remedy="give a lower --alpha")
            layer.learns_mask = False
            layer.theta.requires_grad_(False)
            expanded = layer.mask.bool()[:, None, None].expand(layer.weight.shape)
            masks[f"{name}.weight"] = expanded.cpu().numpy().copy()
    return masks


class PatternPenalty(Regulariser):
    """The second stage's term, ``alpha · sum exp(-theta)``; the authors' alpha is 8e-6 for ResNet-34 on ImageNet.

    Args:
        model: a converted net; its masks are learnt from now on.
        alpha: larger is sparser.
    """

    def __init__(self, model: nn.Module, alpha: float = 1e-4) -> None:
        use_patterns(model)
        self._model, self._alpha = model, alpha

    def loss(self) -> Tensor:
        """The term."""
        return (
            self._alpha
            * torch.stack([layer.theta.neg().exp().sum() for layer in dynamic_layers(self._model).values()]).sum()
        )

    def masks(self) -> Masks:
        """See `freeze`."""
        return freeze(self._model)

    def report(self) -> dict[str, float]:
        """Mean share of positions in the union."""
        shares = [layer.support().float().mean() for layer in dynamic_layers(self._model).values()]
        return {"support": float(torch.stack(shares).mean())}


@dataclass(frozen=True)
class PatternCosts:
    """MACs of one sample.

    Attributes:
        dense: of the dynamic layers, all positions read once.
        kept: of the same with the union of the masks.
        other: of the other convolutions and the fully connected layers.
        attention: of both products of every attention.
        aggregation: of putting the kernels together.
    """

    dense: int
    kept: int
    other: int
    attention: int
    aggregation: int

    @property
    def removed(self) -> tuple[Fraction, Fraction, Fraction]:
        """Share removed of the dynamic layers, of the whole net, and of the net with the overhead it now has.

        Which of them the published 65.6 % is, is not known.
        """
        total, overhead = self.dense + self.other, self.attention + self.aggregation
        gone = self.dense - self.kept
        return Fraction(gone, self.dense), Fraction(gone, total), Fraction(gone - overhead, total)


def costs_of(pixels: Mapping[DynamicPatternConv2d, int], other: int) -> PatternCosts:
    """The costs of dynamic layers that give so many pixels for one sample, beside the ``other`` MACs of their net."""
    dense = kept = attention = aggregation = 0
    for layer, places in pixels.items():
        _, filters, channels, rows, columns = layer.weight.shape
        masks = layer.pattern_masks().detach()
        # there are no values on the meta device: every position counts
        whole = masks.is_meta
        dense += filters * channels * rows * columns * places
        kept += filters * channels * (rows * columns if whole else int(layer.support().sum())) * places
        aggregation += filters * channels * (masks.numel() if whole else int(masks.sum()))
        attention += layer.attention.macs
    return PatternCosts(dense, kept, other, attention, aggregation)


def dynamic_layers(model: nn.Module) -> dict[str, DynamicPatternConv2d]:
    """The dynamic convolutions by the parameter name of their weight."""
    return {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, DynamicPatternConv2d)}
