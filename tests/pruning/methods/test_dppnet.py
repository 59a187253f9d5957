"""DPPNet: the step's gradient, masks and thresholds, aggregation, three stages of training, and the paper's counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from examples.nets import resnet
from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.pruning.methods.dppnet import DPPNet
from trtkp.pruning.methods.dppnet_module import (
    Attention,
    DynamicPatternConv2d,
    LongTailedStep,
    PatternCosts,
    PatternPenalty,
    convert,
    costs_of,
    dynamic_layers,
    freeze,
    pack,
    use_patterns,
)
from trtkp.pruning.modules import with_modules
from trtkp.pruning.regulariser import layer_parameters
from trtkp.pruning.train.data import Arrays, Loader
from trtkp.pruning.train.processes import Processes
from trtkp.pruning.train.recipe import Preprocessing, Recipe
from trtkp.pruning.train.trainer import Trainer, evaluate


def pattern_costs(model: nn.Module, example: torch.Tensor) -> PatternCosts:
    """Count a converted net on one sample [1, C, H, W]; works on the meta device with masks that are not learnt."""
    pixels, other = {}, 0

    def count(module: nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal other
        if isinstance(module, DynamicPatternConv2d):
            pixels[module] = out.shape[2] * out.shape[3]
        elif isinstance(module, nn.Conv2d):
            other += module.weight.numel() * out.shape[2] * out.shape[3]
        elif isinstance(module, nn.Linear):
            other += module.weight.numel()

    inside = {part for layer in dynamic_layers(model).values() for part in layer.modules() if part is not layer}
    hooks = [module.register_forward_hook(count) for module in model.modules() if module not in inside]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return costs_of(pixels, other)


def layer_with(stride: int = 1, bias: bool = False, seed: int = 0) -> DynamicPatternConv2d:
    """A layer of four patterns with thresholds about the mean magnitude, and an attention that attends."""
    torch.manual_seed(seed)
    layer = DynamicPatternConv2d(nn.Conv2d(6, 5, 3, stride=stride, padding=1, bias=bias), noise=0.5)
    nn.init.normal_(layer.attention.attend.weight, std=2.0)
    with torch.no_grad():
        layer.theta.copy_(layer.weight.abs().mean() * (1 + 0.1 * torch.randn(4, 5)))
    use_patterns(layer)
    return layer


def test_scope(new_layer: Callable[..., ConvLayer]) -> None:
    """1x1 convolutions stay as they are, those of bottlenecks too."""
    method = DPPNet()
    assert method.inapplicable(new_layer()) is method.out_of_scope(new_layer()) is None
    assert "1x1 kernel" in str(method.inapplicable(new_layer(kernel=(1, 1))))
    assert method.out_of_scope(new_layer(kernel=(5, 5))) == "5x5 kernel"


def test_gradient_of_the_step() -> None:
    u = torch.tensor([-1.2, -1.0, -0.5, -0.4, -0.1, 0.0, 0.1, 0.4, 0.41, 1.0, 1.01], requires_grad=True)
    step = LongTailedStep.apply(u)
    assert step.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    step.sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == pytest.approx([0, 0.4, 0.4, 0.4, 1.6, 2.0, 1.6, 0.4, 0.4, 0.4, 0])


def test_a_position_stays_where_the_mean_magnitude_exceeds_the_mean_threshold() -> None:
    layer = layer_with()
    masks = layer.pattern_masks()
    for p in range(4):
        for r in range(3):
            for s in range(3):
                magnitude = layer.weight[p, :, :, r, s].abs().mean()
                assert bool(masks[p, r, s]) == bool(magnitude > layer.theta[p].mean())
    assert 0 < masks.sum() < 36
    with torch.no_grad():
        layer.theta.zero_()
    assert layer.pattern_masks().all()  # nothing is pruned at the start


@pytest.mark.parametrize(("stride", "bias"), [(1, False), (2, True)])
def test_aggregation_is_linear_and_samples_do_not_meet(stride: int, bias: bool) -> None:
    layer, x = layer_with(stride, bias), torch.randn(4, 6, 9, 7)
    out, attention, masks = layer(x), layer.attention(x), layer.pattern_masks()
    want = sum(
        attention[:, p, :, None, None]
        * nn.functional.conv2d(x, layer.weight[p] * masks[p], None, stride, 1)
        for p in range(4)
    )  # fmt: skip
    if layer.bias is not None:
        want = want + layer.bias[:, None, None]
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, torch.cat([layer(one[None]) for one in x]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(4, 5))
    assert not torch.allclose(attention[0], attention[1], atol=1e-3)  # it does attend


def test_every_input_reads_the_union_of_the_masks() -> None:
    layer = layer_with()
    with torch.no_grad():
        layer.theta.fill_(layer.weight.abs().mean(dim=(1, 2)).quantile(0.85))
    support = layer.support()
    assert 0 < support.sum() < 9
    for seed in range(5):
        attention = layer.attention(torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(seed)))
        weight = torch.einsum("npo,pocrs->ocrs", attention, layer.weight * layer.pattern_masks()[:, None, None])
        assert torch.equal((weight != 0).any(dim=0).any(dim=0), support)


def test_exported_with_a_dynamic_batch() -> None:
    layer = layer_with(bias=True).eval()
    freeze(layer)
    batch = torch.export.Dim("batch", min=1, max=16)
    packed = nn.Sequential(layer)
    pack(packed)
    program = torch.export.export(packed, (torch.randn(2, 6, 8, 8),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 5, 16):
        x = torch.randn(count, 6, 8, 8)
        torch.testing.assert_close(program(x), layer(x), rtol=1e-4, atol=1e-5)


def test_the_packed_operator_has_the_gradients_of_what_it_came_from() -> None:
    """Through weights, attention, bias and input, also under automatic mixed precision, where it stays in float32."""
    layer, x = layer_with(stride=2, bias=True).double(), torch.randn(3, 6, 9, 7, dtype=torch.float64)
    freeze(layer)
    assert layer.support().all()  # so the packed weight is the masked one, transposed
    net = nn.Sequential(layer)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(one).square().sum().backward()
    want = [one.grad, layer.weight.grad, *(p.grad for p in layer.attention.parameters()), layer.bias.grad]
    want[1] = (want[1] * layer.mask[:, None, None]).flatten(3).transpose(2, 3).flatten(2)
    for parameter in layer.parameters():
        parameter.grad = None
    pack(net)
    net(other).square().sum().backward()
    packed = net[0]
    got = [other.grad, packed.weight.grad, *(p.grad for p in packed.attention.parameters()), packed.bias.grad]
    expanded = layer.mask.flatten(1)[:, None, :, None].expand(4, 5, 9, 6).flatten(2)
    got[1] = packed.weight.grad * expanded
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right)
    net.float().zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(nn.functional.conv2d(x.float(), torch.eye(6)[:, :, None, None]))  # bfloat16 comes in
    assert out.dtype == torch.float32
    out.sum().backward()
    assert packed.weight.grad.abs().sum() > 0


def test_conversion_nearly_keeps_what_the_net_computes() -> None:
    torch.manual_seed(0)
    net = resnet.resnet20_cifar().eval()
    x = torch.randn(2, 3, 32, 32)
    before = net(x)
    names = convert(net, noise=0.0)
    assert len(names) == 18
    assert "conv1" not in names
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="no convolution is called fc"):
        convert(net, ["fc"])
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(InputError, match="layer 0: dynamic patterns are for convolutions of one group"):
        convert(grouped, ["0"])


class OneConvolution(nn.Module):
    """Base of nets that use theirs in another way than its module does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)


class Tied(OneConvolution):
    """One weight at two strides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(self.conv(x), self.conv.weight, self.conv.bias, 2)


class Kept(OneConvolution):
    """A weight that something else reads too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.conv.weight.abs().mean()


class ComputedBias(OneConvolution):
    """A bias that is no parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.conv.weight, 2 * self.conv.bias)


class Buffer(OneConvolution):
    """A weight that is none either."""

    def __init__(self) -> None:
        super().__init__()
        weight = self.conv.weight.detach()
        del self.conv.weight
        self.conv.register_buffer("weight", weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class NoModule(nn.Module):
    """A weight of the net itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.kernel)


class ComputedClassifier(OneConvolution):
    """A fully connected layer whose bias is computed, behind an ordinary convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.conv(x).mean(dim=(2, 3)), self.fc.weight, self.fc.bias + 1)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "of one group"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")), "padded with zeros"),
        (Tied, "layer conv.weight: calls on its weight differ in their arguments: it cannot be replaced; leave it out"),
        (Kept, "layer conv.weight: something else reads its weight too"),
        (ComputedBias, "layer conv.weight: its bias is computed"),
        (Buffer, "layer conv.weight: its weight is a buffer"),
        (NoModule, "layer kernel: its weight does not belong to a module"),
    ],
)
def test_a_program_whose_convolution_cannot_be_converted(net: Any, words: str) -> None:
    program = torch.export.export(net().eval(), (torch.randn(2, 4, 8, 8),)).module(check_guards=False)
    name = next(name for name, tensor in program.state_dict().items() if tensor.ndim == 4)
    with pytest.raises(InputError, match=words):
        convert(with_modules(program, {name}), [name.removesuffix(".weight")])


def test_a_buffer_is_not_trained(new_layer: Any) -> None:
    layer = new_layer(filters=4, channels=4, name="conv.weight")
    with pytest.raises(InputError, match=r"layer conv\.weight: is a buffer and not trained; leave it out"):
        layer_parameters(Buffer(), [layer])


@pytest.mark.parametrize("net", [Tied, Kept, ComputedBias, Buffer, NoModule, ComputedClassifier])
def test_what_stays_a_call_is_none_of_the_layers_that_are_needed(net: Any) -> None:
    x = torch.randn(2, 4, 8, 8)
    program = torch.export.export(net().eval(), (x,)).module(check_guards=False)
    want = program(x)
    assert torch.equal(with_modules(program, ()).eval()(x), want)


def test_all_convolutions_are_needed_where_channels_go() -> None:
    program = torch.export.export(ComputedBias().eval(), (torch.randn(2, 4, 8, 8),)).module(check_guards=False)
    with pytest.raises(InputError, match=r"layer conv\.weight: its bias is computed: it cannot be replaced; make it a"):
        with_modules(program)


def test_a_shared_weight_becomes_one_dynamic_convolution() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x).relu())

    torch.manual_seed(0)
    net, x = Twice().eval(), torch.randn(2, 4, 8, 8)
    program = torch.export.export(net, (x,)).module(check_guards=False)
    program = with_modules(program)
    convert(program, ["conv"], noise=0.0)
    assert len(dynamic_layers(program)) == 1
    torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)
    pack(program)
    torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)


def test_three_stages() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = 0.3 * torch.randn(90, 2, 8, 8, generator=rng)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    data = Arrays(images.numpy(), labels.numpy(), Preprocessing())
    loader = Loader(data, data.how, batch=30, seed=0, processes=Processes())
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    names = convert(net)
    assert names == ["2"]
    recipe = Recipe(epochs=12, batch=30, lr=0.1)
    Trainer(net, loader, recipe, stage="prepare").run()
    assert net[2].pattern_masks().all()
    assert net[2].theta.eq(0).all()
    penalty = PatternPenalty(net, alpha=0.3)
    slow = Recipe(epochs=40, batch=30, lr=0.01, momentum=0.0)
    Trainer(net, loader, slow, stage="regularise", regulariser=penalty).run()
    assert net[2].theta.mean() > 0
    report = penalty.report()
    masks = penalty.masks()
    assert 0 < report["support"] < 1
    assert not masks["2.weight"].all()
    theta = net[2].theta.detach().clone()
    Trainer(net, loader, recipe, masks=masks).run()
    assert (net[2].weight.detach().numpy()[~masks["2.weight"]] == 0).all()
    assert torch.equal(net[2].theta, theta)
    assert torch.equal(net[2].mask.bool()[:, None, None].expand(4, 8, 8, 3, 3), torch.from_numpy(masks["2.weight"]))
    assert evaluate(net, loader, torch.device("cpu")) > 0.8


def test_penalty_by_hand_and_a_layer_that_is_gone() -> None:
    net = nn.Sequential(layer_with())
    penalty = PatternPenalty(net, alpha=0.5)
    assert float(penalty.loss()) == pytest.approx(0.5 * float(torch.exp(-net[0].theta).sum()), rel=1e-6)
    with torch.no_grad():
        net[0].theta.fill_(10)
    with pytest.raises(InputError, match="layer 0: its patterns have no position left"):
        freeze(net)


def test_counts_of_resnet_34_and_what_65_6_percent_means() -> None:
    with torch.device("meta"):
        net = resnet.resnet34().eval()
        names = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    for name in names:  # the noise needs numbers, and there are none here
        owner, _, attribute = name.rpartition(".")
        conv = net.get_submodule(name)
        with torch.device("meta"):
            dynamic = DynamicPatternConv2d.__new__(DynamicPatternConv2d)
            nn.Module.__init__(dynamic)
            filters, channels = conv.out_channels, conv.in_channels
            dynamic.stride, dynamic.padding, dynamic.dilation = conv.stride, conv.padding, conv.dilation
            dynamic.patterns, dynamic.bias, dynamic.learns_mask = 4, None, False
            dynamic.weight = nn.Parameter(torch.empty(4, filters, channels, 3, 3))
            dynamic.attention = Attention(channels, filters, 4, 0.5)
            dynamic.register_buffer("mask", torch.ones(4, 3, 3))
        setattr(net.get_submodule(owner), attribute, dynamic)
    costs = pattern_costs(net, torch.empty(1, 3, 224, 224, device="meta"))
    assert costs.dense == 3_525_967_872
    assert costs.dense + costs.other == 3_663_761_408
    assert round(costs.aggregation / 1e6, 1) == 84.3
    assert round(costs.attention / 1e6, 1) == 2.9
    share = costs.dense / (costs.dense + costs.other)
    assert round(100 * share, 2) == 96.24
    assert round(9 * (1 - 0.656 / share), 3) == 2.865
    assert round(9 * (1 - 0.656), 3) == 3.096
    assert costs.removed[:2] == (0, 0)


def test_share_of_resnet_18_that_can_be_dynamic() -> None:
    with torch.device("meta"):
        net = resnet.resnet18().eval()
    macs = {}

    def count(name: str) -> Any:
        def hook(module: nn.Conv2d | nn.Linear, _: Any, out: torch.Tensor) -> None:
            macs[name] = module.weight.numel() * (out[0, 0].numel() if out.ndim == 4 else 1)

        return hook

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count(name))
    net(torch.empty(1, 3, 224, 224, device="meta"))
    total = sum(macs.values())
    dynamic = sum(
        count for name, count in macs.items() if getattr(net.get_submodule(name), "kernel_size", None) == (3, 3)
    )
    assert total == 1_814_073_344
    assert round(100 * dynamic / total, 2) == 92.4


def test_counts_follow_the_masks() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), layer_with())
    with torch.no_grad():
        net[1].theta.fill_(net[1].weight.abs().mean(dim=(1, 2)).quantile(0.85))
    freeze(net)
    support, kept = int(net[1].support().sum()), int(net[1].mask.sum())
    costs = pattern_costs(net, torch.randn(1, 3, 8, 8))
    assert (costs.dense, costs.kept, costs.other) == (6 * 5 * 9 * 64, 6 * 5 * support * 64, 3 * 6 * 9 * 64)
    assert costs.aggregation == 6 * 5 * kept
    assert costs.attention == 6 * 2 + 2 * 20
    assert costs.removed[0] * 9 == 9 - support
    assert costs.removed[2] < costs.removed[1] < costs.removed[0]
