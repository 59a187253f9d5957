"""Measure whole nets: dense by cuDNN and by torch.compile, with fewer channels at equal MACs, and pruned and packed.

Each is timed launched from Python (eager) and replayed from a CUDA graph.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.device import Device
from benchmarks.gpu.record import Part
from examples.nets import settle_batch_norm
from examples.nets.digits import digits_cnn
from examples.nets.resnet import resnet18, resnet34, resnet50, resnet56_cifar
from examples.nets.vgg import vgg16_cifar
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet, from_mask
from trtkp.ops import PackedConv2d, swap_convolutions
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.one_shot import prune_one_shot

__all__ = ["BATCHES", "METHODS", "NETS", "macs_of", "measure_net", "narrowed"]

BATCHES = (1, 8, 32, 256)
#: Name to factory and input (C, H, W). The CIFAR ResNet has convolutions as shortcuts (option B) so that `narrowed` can
#: change its widths.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet18": (resnet18, (3, 224, 224)),
    "resnet34": (resnet34, (3, 224, 224)),
    "resnet50": (resnet50, (3, 224, 224)),
    "vgg16-cifar": (vgg16_cifar, (3, 32, 32)),
    "resnet56-cifar": (lambda: resnet56_cifar("B"), (3, 32, 32)),
    "tiny": (lambda: digits_cnn(16), (1, 8, 8)),
}
#: V-SKP without 70 % of the kernels, and KEP with 4 of 9 elements; the ratios are our choice. The first three have
#: granularities that tensor cores run. The last two have lists of one filter: V-SKP's own granularity, and our reading
#: of KEP's.
METHODS: dict[str, dict[str, Any]] = {
    "vskp 0.7, groups of 64, blocks of 8": {"name": "vskp", "ratio": 0.7, "filter_group": 64, "channel_block": 8},
    "vskp 0.7, groups of 32, blocks of 16": {"name": "vskp", "ratio": 0.7, "filter_group": 32, "channel_block": 16},
    "kep n=4, per layer": {"name": "kep", "n": 4, "share": "per-layer"},
    "vskp 0.7, one filter a list": {"name": "vskp", "ratio": 0.7},
    "kep n=4, positions of each plane": {"name": "kep", "n": 4},
}
DTYPE = torch.float16


def measure_net(part: Part, device: Device, net: str, *, compiled: bool) -> None:
    """Measure every variant of a net at every batch size; with ``compiled`` only the net by torch.compile."""
    name = "tiny" if device.emulated else net
    for batch in (1, 2) if device.emulated else BATCHES:
        if compiled:
            part.measure(f"{batch} | torch.compile", lambda b=batch: _compiled(device, name, b))  # type: ignore[misc]
            continue
        dense = part.measure(f"{batch} | dense", lambda b=batch: _timed(device, name, _dense(device, name), b))  # type: ignore[misc]
        for method in METHODS:
            found = part.measure(f"{batch} | {method}", lambda m=method, b=batch: _pruned(device, name, m, b))  # type: ignore[misc]
            narrow = part.measure(
                f"{batch} | channels at the MACs of {method}",
                lambda m=method, b=batch: _narrow(device, name, m, b),  # type: ignore[misc]
            )
            if found is None or narrow is None or dense is None:
                return
            _print(net, batch, method, dense, found, narrow)


def _print(net: str, batch: int, method: str, *rows: dict[str, Any]) -> None:
    dense, found, narrow = (row.get("graph", {}).get("median_us", float("nan")) for row in rows)
    print(f"  {net:15} {batch:4} {method:38} dense {dense:9.1f} us  ours {dense / found:5.2f}x  "
          f"channels {dense / narrow:5.2f}x", flush=True)  # fmt: skip


@cache
def _source(net: str) -> nn.Module:
    """The net with random weights and batch-normalisation statistics to match, in fp32 on the CPU."""
    torch.manual_seed(0)
    factory, shape = NETS[net]
    return _settled(factory(), shape)


def _settled(model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Set the batch-normalisation statistics; without it the activations of a deep net leave the range of fp16."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    return settle_batch_norm(model.to(where), shape).cpu()


@cache
def _index_sets(net: str, method: str) -> dict[str, IndexSet]:
    """Index sets by parameter name."""
    settings = dict(METHODS[method])
    layers = conv_layers(_source(net), NETS[net][1])
    weights = {name: p.detach().numpy() for name, p in _source(net).named_parameters()}
    pruning = prune_one_shot(make_method(settings.pop("name"), **settings), layers, weights)
    return {name: from_mask(mask, _groups(net, name)) for name, mask in pruning.masks.items()}


def _groups(net: str, weight: str) -> int:
    module = _source(net).get_submodule(weight.removesuffix(".weight"))
    assert isinstance(module, nn.Conv2d)
    return module.groups


def conv_layers(model: nn.Module, shape: tuple[int, int, int]) -> list[ConvLayer]:
    """The convolutions of a model, in the order of their calls, with sizes from a run on the meta device."""
    found: list[ConvLayer] = []
    names: dict[nn.Module, str] = {}

    def note(module: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        pads = tuple(int(p) for p in module.padding)
        found.append(
            ConvLayer(
                name=f"{names[module]}.weight",
                node=names[module],
                filters=module.out_channels,
                channels=module.in_channels // module.groups,
                kernel=tuple(module.kernel_size),
                strides=tuple(module.stride),
                pads=(*pads, *pads),
                dilations=tuple(module.dilation),
                groups=module.groups,
                input_size=tuple(inputs[0].shape[2:]),
                output_size=tuple(output.shape[2:]),
                bias=module.bias is not None,
                stem=not found,
            )
        )  # type: ignore[arg-type]

    without_data = copy.deepcopy(model).to("meta").eval()
    names |= {module: name for name, module in without_data.named_modules()}
    for module in names:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)  # type: ignore[arg-type]
    with torch.no_grad():
        without_data(torch.zeros(1, *shape, device="meta"))
    return found


def macs_of(model: nn.Module, shape: tuple[int, int, int], index_sets: dict[str, IndexSet] | None = None) -> float:
    """Multiply-accumulates of all convolutions for one image; in layers with index sets, of listed weights only."""
    total = 0.0
    for layer in conv_layers(model, shape):
        index = (index_sets or {}).get(layer.name)
        size = layer.filters * layer.channels * layer.taps * layer.output_size[0] * layer.output_size[1]
        total += size * (index.density if index else 1.0)
    return total


def narrowed(model: nn.Module, factor: float) -> nn.Module:
    """A copy of the net with every width scaled by ``factor``, to multiples of 8. Input and output stay as they are."""
    scaled = copy.deepcopy(model)
    linears = [m for m in scaled.modules() if isinstance(m, nn.Linear)]

    def width(channels: int) -> int:
        return channels if channels <= 3 else max(8, round(channels * factor / 8) * 8)

    for name, module in list(scaled.named_modules()):
        new: nn.Module | None = None
        if isinstance(module, nn.Conv2d):
            assert module.groups == 1
            new = nn.Conv2d(width(module.in_channels), width(module.out_channels), module.kernel_size, module.stride,
                            module.padding, module.dilation, bias=module.bias is not None)  # type: ignore[arg-type]  # fmt: skip
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            new = type(module)(width(module.num_features))
        elif isinstance(module, nn.Linear):
            outputs = module.out_features if module is linears[-1] else width(module.out_features)
            new = nn.Linear(width(module.in_features), outputs, bias=module.bias is not None)
        if new is not None:
            scaled.set_submodule(name, new)
    return scaled.eval()


@cache
def _narrow_source(net: str, method: str) -> tuple[nn.Module, float]:
    """The widest net made by `narrowed` that has no more MACs than the pruned net, and its MACs."""
    shape = NETS[net][1]
    goal = macs_of(_source(net), shape, _index_sets(net, method))

    def macs(step: int) -> float:
        return macs_of(narrowed(_source(net), step / 64), shape)

    step = bisect_right(range(1, 65), goal, key=macs)
    if step == 0:
        raise ValueError(f"{net}: no width has as few MACs as {method}")
    return _settled(narrowed(_source(net), step / 64), shape), macs(step)


def _on_device(model: nn.Module, device: Device) -> nn.Module:
    return copy.deepcopy(model).to(device.torch, DTYPE).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _input(device: Device, net: str, batch: int) -> Tensor:
    x = torch.randn(batch, *NETS[net][1], dtype=DTYPE, device=device.torch)
    return x.contiguous(memory_format=torch.channels_last)


def _dense(device: Device, net: str) -> nn.Module:
    """The dense net with batch normalisation folded, as in an engine."""
    return _on_device(swap_convolutions(_source(net), {}), device)


def _timed(device: Device, net: str, model: nn.Module, batch: int) -> dict[str, Any]:
    """Time a model, launched from Python (``eager``) and replayed from a CUDA graph (``graph``)."""
    inputs = device.copies(_input(device, net, batch))[:4]
    return {
        "eager": device.time(model, inputs, runs=10, graph=False),
        "graph": device.time(model, inputs, runs=10, graph=True),
    }


def _compiled(device: Device, net: str, batch: int) -> dict[str, Any]:
    torch.compiler.reset()
    model = torch.compile(_dense(device, net), backend="eager" if device.emulated else "inductor", dynamic=False)
    return _timed(device, net, model, batch)


def _narrow(device: Device, net: str, method: str, batch: int) -> dict[str, Any]:
    model, macs = _narrow_source(net, method)
    found = _timed(device, net, _on_device(swap_convolutions(model, {}), device), batch)
    return found | {"macs_left": round(macs / macs_of(_source(net), NETS[net][1]), 4)}


def _pruned(device: Device, net: str, method: str, batch: int) -> dict[str, Any]:
    """Pack each layer that is faster packed, on this GPU at this batch size; compare with the masked net, and time."""
    index_sets, x = _index_sets(net, method), _input(device, net, batch)
    source = _on_device(_source(net), device)
    shapes = {layer.node: layer for layer in conv_layers(_source(net), NETS[net][1])}
    faster: list[str] = []

    def keep(name: str, packed: PackedConv2d, dense: nn.Conv2d) -> bool:
        size = (batch, dense.in_channels, *shapes[name].input_size)
        data = torch.randn(size, dtype=DTYPE, device=device.torch).contiguous(memory_format=torch.channels_last)
        if packed.tactics(data) == ["reference"]:
            return False
        inputs = device.copies(data)[:4]
        times = [device.time(layer, inputs, runs=5)["median_us"] for layer in (packed, dense)]
        if times[0] < times[1] or device.emulated:
            faster.append(name)
        return name in faster

    with torch.no_grad():
        packed = swap_convolutions(source, index_sets, example=x, keep=keep)
        masked = swap_convolutions(source, index_sets, keep=lambda *_: False)
        got, want = packed(x).double(), masked(x).double()
    error = float((got - want).norm() / want.norm())
    if not error <= 5e-3:
        raise RuntimeError(f"the packed net's relative error is {error:.2e}")
    macs = macs_of(_source(net), NETS[net][1], index_sets) / macs_of(_source(net), NETS[net][1])
    return _timed(device, net, packed, batch) | {
        "macs_left": round(macs, 4), "layers_pruned": len(index_sets), "layers_packed": len(faster), "error": error,
    }  # fmt: skip
