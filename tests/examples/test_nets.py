"""The example nets: exact sizes, export with a dynamic batch, and settling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.nets import dense, digits, export, mobile, resnet, settle_batch_norm, unet, vgg

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
Factory = Callable[[], nn.Module]


def name_of(value: object) -> str | None:
    if isinstance(value, partial):
        return f"{value.func.__name__}-{value.keywords['option']}"
    return getattr(value, "__name__", None)


def params_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs_of(factory: Factory, shape: tuple[int, ...]) -> dict[type, int]:
    """The MACs of one image by layer type, counted on the meta device."""
    with torch.device("meta"):
        model = factory().eval()
        macs: dict[type, int] = {nn.Conv2d: 0, nn.Linear: 0}

        def count(layer: nn.Module, args: Any, out: Tensor) -> None:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            macs[type(layer)] += out[0].numel() * layer.weight[0].numel()

        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(count)
        with torch.no_grad():
            model(torch.empty(1, *shape))
    return macs


def settled(factory: Factory, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return settle_batch_norm(factory(), shape, seed=1)


def assert_same(program: torch.export.ExportedProgram, model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = model(x)
        got = program.module()(x)
    assert want.dtype == torch.float32
    assert torch.isfinite(want).all()
    assert 1e-3 < want.abs().max() < 1e3
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


SIZES = [
    (vgg.vgg16_cifar, CIFAR, 14_987_722, 313_196_544 + 267_264),
    (vgg.vgg16_cifar_single_fc, CIFAR, 14_724_042, 313_196_544 + 5_120),
    (resnet.resnet20_cifar, CIFAR, 269_722, 40_551_040),
    (resnet.resnet32_cifar, CIFAR, 464_154, 68_862_592),
    (resnet.resnet56_cifar, CIFAR, 853_018, 125_485_696),
    (resnet.resnet110_cifar, CIFAR, 1_727_962, 252_887_680),
    (partial(resnet.resnet20_cifar, option="B"), CIFAR, 269_722 + 2_752, 40_551_040 + 262_144),
    (partial(resnet.resnet32_cifar, option="B"), CIFAR, 464_154 + 2_752, 68_862_592 + 262_144),
    (partial(resnet.resnet56_cifar, option="B"), CIFAR, 853_018 + 2_752, 125_485_696 + 262_144),
    (partial(resnet.resnet110_cifar, option="B"), CIFAR, 1_727_962 + 2_752, 252_887_680 + 262_144),
    (resnet.resnet18, IMAGENET, 11_689_512, 1_814_073_344),
    (resnet.resnet34, IMAGENET, 21_797_672, 3_663_761_408),
    (resnet.resnet50, IMAGENET, 25_557_032, 4_089_184_256),
]


@pytest.mark.parametrize(("factory", "shape", "params", "macs"), SIZES, ids=name_of)
def test_sizes(factory: Factory, shape: tuple[int, ...], params: int, macs: int) -> None:
    with torch.device("meta"):
        assert params_of(factory()) == params
    assert sum(macs_of(factory, shape).values()) == macs


def test_vgg_macs_by_layer_type() -> None:
    assert macs_of(vgg.vgg16_cifar, CIFAR) == {nn.Conv2d: 313_196_544, nn.Linear: 267_264}


# The ImageNet nets are exported at a smaller image: the layers are the same.
EXPORTS = [
    (digits.digits_cnn, (1, 16, 16), (10,)),
    (digits.digits_cnn, (1, 8, 8), (10,)),
    (vgg.vgg16_cifar, CIFAR, (10,)),
    (vgg.vgg16_cifar_single_fc, CIFAR, (10,)),
    (resnet.resnet20_cifar, CIFAR, (10,)),
    (partial(resnet.resnet20_cifar, option="B"), CIFAR, (10,)),
    (resnet.resnet32_cifar, CIFAR, (10,)),
    (resnet.resnet56_cifar, CIFAR, (10,)),
    (resnet.resnet110_cifar, CIFAR, (10,)),
    (resnet.resnet18, (3, 64, 64), (1000,)),
    (resnet.resnet34, (3, 64, 64), (1000,)),
    (resnet.resnet50, (3, 64, 64), (1000,)),
    (mobile.mobile_net_like, (3, 96, 96), (100,)),
    (dense.dense_net_like, (3, 64, 64), (10,)),
    (unet.unet, (3, 64, 64), (2, 64, 64)),
]


@pytest.mark.parametrize(("factory", "shape", "out"), EXPORTS, ids=name_of)
def test_export_with_dynamic_batch(factory: Factory, shape: tuple[int, ...], out: tuple[int, ...]) -> None:
    model = settled(factory, shape)
    program = export(model, shape)
    for batch in (1, 3):
        assert_same(program, model, (batch, *shape))
    with torch.no_grad():
        assert model(torch.zeros(2, *shape)).shape == (2, *out)


def test_unet_exports_with_dynamic_size() -> None:
    model = settled(unet.unet, (3, 64, 64))
    program = export(model, (3, 64, 64), size_step=8)
    assert_same(program, model, (1, 3, 64, 64))
    assert_same(program, model, (3, 3, 32, 88))


def test_export_with_fixed_batch() -> None:
    model = settled(digits.digits_cnn, (1, 16, 16))
    assert_same(export(model, (1, 16, 16), batch=(1, 1)), model, (1, 1, 16, 16))


def test_export_refuses_training_mode() -> None:
    model = digits.digits_cnn().eval()
    model.body1[1].train()
    with pytest.raises(ValueError, match=r"body1\.1 is in training mode"):
        export(model, (1, 16, 16))


@pytest.mark.parametrize("batch", [(0, 4), (4, 2)])
def test_export_refuses_bad_batch(batch: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="batch must be"):
        export(digits.digits_cnn().eval(), (1, 16, 16), batch=batch)


def running_var(layer: nn.BatchNorm2d) -> Tensor:
    assert layer.running_var is not None
    return layer.running_var.clone()


def test_settle_batch_norm() -> None:
    torch.manual_seed(0)
    model = resnet.resnet20_cifar()
    state = torch.get_rng_state()
    assert settle_batch_norm(model, CIFAR, seed=3) is model
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m.training for m in model.modules())
    assert model.bn1.momentum == 0.1
    first = running_var(model.bn1)
    seen: dict[str, Tensor] = {}
    model.get_submodule("layer3.2.bn2").register_forward_hook(lambda layer, args, out: seen.update(out=out))
    with torch.no_grad():
        model(torch.randn(16, *CIFAR))
    assert seen["out"].std().item() == pytest.approx(1, abs=0.2)
    settle_batch_norm(model, CIFAR, seed=4)
    assert not torch.equal(running_var(model.bn1), first)
    settle_batch_norm(model, CIFAR, seed=3)
    assert torch.equal(running_var(model.bn1), first)


def test_resnet_parameter_names() -> None:
    with torch.device("meta"):
        state = resnet.resnet50().state_dict()
    assert len(state) == 320
    for name, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "layer4.0.downsample.1.bias": (2048,),
        "fc.weight": (1000, 2048),
    }.items():
        assert tuple(state[name].shape) == shape


def test_cifar_resnet_refuses_unknown_option() -> None:
    with pytest.raises(ValueError, match="option must be"):
        resnet.resnet20_cifar(option="C")  # type: ignore[arg-type]


def test_mobile_net_has_the_layers_it_is_for() -> None:
    model = mobile.mobile_net_like()
    assert 1_000_000 < params_of(model) < 3_000_000
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert any(c.groups == c.in_channels > 1 for c in convs)
    assert any(1 < c.groups < c.in_channels and c.kernel_size == (3, 3) for c in convs)
    kinds = {type(m) for m in model.modules()}
    assert {nn.SiLU, nn.Hardswish, mobile.SqueezeExcite} <= kinds
