r"""DPPNet: dynamic pattern-based pruning (CIKM 2022, doi 10.1145/3511808.3557225).

Known from the authors' code. A convolution holds P static kernels W_p; an attention chooses among them per input and
filter, a mask per pattern says which positions stay:

    A(x)  = softmax_p( U_2 relu(U_1 GAP(x)) / T ),       W(x)_o = sum_p A_{p,o}(x) · M_p o W_{p,o},       y = W(x) * x
    M_p   = 1[m_p > 0],        m_p = mean_{o,c} |W_p| - mean_o theta_{p,o}

with T = 0.5, a hidden width of ``floor(C / 4) + 1`` (P where C = 3), theta 0 at the start. The step's gradient is long-
tailed: with ``u = sigmoid(m) - 1/2``, ``2 - 4 |u|`` up to 0.4, 0.4 up to 1. The loss adds ``alpha sum exp(-theta)``.
Three stages: train the dense dynamic net, train with masks, freeze the masks and fine-tune.

The softmax is positive, so for every input the same positions are read: the union of the masks. Values are dynamic, the
sparsity is not.

Reconstructed: the authors train the first stage from scratch; `convert` starts from an ordinary net instead, each
pattern its kernel with a little noise, the attention uniform, so that the converted net nearly computes what it did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from trtkp.errors import InputError
from trtkp.prune.regulariser import Regulariser

if TYPE_CHECKING:
    from trtkp.prune.method import Masks

__all__ = [
    "DynamicPatternConv2d",
    "LongTailedStep",
    "PatternCosts",
    "PatternPenalty",
    "convert",
    "freeze",
    "pattern_costs",
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


class DynamicPatternConv2d(nn.Module):
    """A convolution whose kernel is put together for every sample: ``[N, C, H, W] -> [N, O, P, Q]``.

    Args:
        conv: the ordinary convolution it takes the place of, of one group.
        patterns: P.
        temperature: T.
        noise: deviation of the patterns about the kernel, as a share of the kernel's own.
        generator: of the noise.

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
        filters, channels = conv.out_channels, conv.in_channels
        hidden = patterns if channels == 3 else channels // 4 + 1
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.patterns, self.temperature = patterns, temperature
        kernel = conv.weight.detach()
        scatter = torch.randn((patterns, *kernel.shape), generator=generator).to(kernel) * kernel.std() * noise
        self.weight = nn.Parameter(kernel + scatter)  # [P, O, C, R, S]
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.squeeze = nn.Linear(channels, hidden, bias=False).to(kernel)
        self.attend = nn.Linear(hidden, patterns * filters).to(kernel)
        nn.init.zeros_(self.attend.weight)
        nn.init.zeros_(self.attend.bias)
        self.theta = nn.Parameter(torch.zeros(patterns, filters).to(kernel), requires_grad=False)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(patterns, *kernel.shape[2:]).to(kernel))
        self.learns_mask = False

    def attention(self, x: Tensor) -> Tensor:
        """A(x), [N, P, O]; sums to one over the patterns."""
        logits = self.attend(self.squeeze(x.mean(dim=(2, 3))).relu())
        return (logits.unflatten(1, (self.patterns, -1)) / self.temperature).softmax(dim=1)

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
        attention, weight = self.attention(x), self.weight * self.pattern_masks()[:, None, None]
        if torch.compiler.is_exporting():  # groups cannot follow a dynamic batch: sum the patterns' outputs instead
            outputs = conv2d(x, weight.flatten(0, 1), None, self.stride, self.padding, self.dilation)
            out = (outputs.unflatten(1, (self.patterns, -1)) * attention[..., None, None]).sum(dim=1)
        else:
            dynamic = torch.einsum("npo,pocrs->nocrs", attention, weight)
            folded = conv2d(
                x.flatten(0, 1)[None], dynamic.flatten(0, 1), None, self.stride, self.padding, self.dilation, len(x)
            )  # fmt: skip
            out = folded[0].unflatten(0, (len(x), -1))
        return out if self.bias is None else out + self.bias[:, None, None]


def convert(
    model: nn.Module, names: Sequence[str] | None = None, *, patterns: int = 4, seed: int = 0, noise: float = 0.1
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
            raise InputError(f"no convolution is called {name}", remedy=f"the model has {', '.join(convolutions)}")
        try:
            dynamic = DynamicPatternConv2d(convolutions[name], patterns, noise=noise, generator=generator)
        except InputError as error:
            raise InputError(error.message, layer=name) from None
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, dynamic)
    return list(names)


def use_patterns(model: nn.Module) -> None:
    """Begin the second stage: masks follow weights and thresholds, thresholds are trained."""
    for layer in _dynamic(model):
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
                raise InputError("every position of every pattern is gone", layer=name, remedy="lower alpha")
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
        return self._alpha * torch.stack([layer.theta.neg().exp().sum() for layer in _dynamic(self._model)]).sum()

    def masks(self) -> Masks:
        """See `freeze`."""
        return freeze(self._model)

    def report(self) -> dict[str, float]:
        """Mean share of positions in the union."""
        shares = [layer.support().float().mean() for layer in _dynamic(self._model)]
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


def pattern_costs(model: nn.Module, example: Tensor) -> PatternCosts:
    """Count a converted net on one sample [1, C, H, W]; works on the meta device with masks that are not learnt."""
    counts = {"dense": 0, "kept": 0, "other": 0, "attention": 0, "aggregation": 0}

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        if isinstance(module, DynamicPatternConv2d):
            P, O, C, R, S = module.weight.shape  # noqa: E741 - the formula's letters
            pixels = out.shape[2] * out.shape[3]
            masks = module.pattern_masks()
            full = masks.is_meta
            counts["dense"] += O * C * R * S * pixels
            counts["kept"] += O * C * (R * S if full else int(module.support().sum())) * pixels
            counts["aggregation"] += O * C * (P * R * S if full else int(masks.sum()))
            counts["attention"] += module.squeeze.weight.numel() + module.attend.weight.numel()
        elif isinstance(module, nn.Conv2d):
            counts["other"] += module.weight.numel() * out.shape[2] * out.shape[3]
        elif isinstance(module, nn.Linear):
            counts["other"] += module.weight.numel()

    inside = {part for layer in _dynamic(model) for part in layer.modules() if part is not layer}
    hooks = [module.register_forward_hook(count) for module in model.modules() if module not in inside]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return PatternCosts(**counts)


def _dynamic(model: nn.Module) -> Iterator[DynamicPatternConv2d]:
    return (module for module in model.modules() if isinstance(module, DynamicPatternConv2d))
