"""Whole builds: what goes into a bundle, and that all of it says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.numpy import load_file
from torch import Tensor, nn

import trtkp
from examples.nets.dense import DenseNetLike
from examples.nets.digits import DigitsCnn
from examples.nets.mobile import mobile_net_like
from examples.nets.unet import UNet
from tests.models import as_onnx, save_program, settled, write_classifier
from trtkp.bundle import Bundle
from trtkp.cli.show import inspected
from trtkp.engine.base import importable
from trtkp.errors import InputError
from trtkp.pipeline import BuildOptions
from trtkp.verification import compare_graphs, dense_graph

needs_rtx = pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")
RTX = {"backend": "tensorrt-rtx", "targets": ("sm86",)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_program(DigitsCnn(16), tmp_path_factory.mktemp("digits") / "digits.pt2", (1, 16, 16))


@pytest.fixture(scope="module")
def digits_onnx(digits: Path) -> Path:
    return as_onnx(digits)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "net.onnx")


def build(source: Path, target: Path, method: str = "kep", *, share: str | None = None, **options: Any) -> Bundle:
    settings = {} if share is None else {"share": share}
    return trtkp.build(source, target, method=method, options=BuildOptions(**options), **settings)


def nodes_of(bundle: Bundle, name: str) -> list[onnx.NodeProto]:
    return list(onnx.load(bundle.file(name)).graph.node)


def assert_whole(bundle: Bundle) -> None:
    """Every promise of the format, from the files alone."""
    manifest, loaded = bundle.manifest, trtkp.load(bundle.path)
    assert loaded.manifest == manifest
    packed = {node.name: node for node in nodes_of(bundle, "model.onnx") if node.domain == "trtkp"}
    pruned = [layer for layer in manifest.layers if layer.kind != "dense"]
    # a node for every index set, with the operator that the manifest names and a body of its own
    assert {layer.node: layer.op for layer in pruned} == {name: node.op_type for name, node in packed.items()}
    assert {layer.name for layer in pruned} == set(loaded.index_sets)
    functions = {function.name for function in onnx.load(bundle.file("model.onnx")).functions}
    assert functions == {node.op_type for node in packed.values()}
    # nothing but standard operators in what the engine is made from
    engine = onnx.load(bundle.file("engine.onnx"))
    assert {node.domain for node in engine.graph.node} <= {""}
    assert not engine.functions
    assert {entry.domain for entry in engine.opset_import} == {""}
    onnx.checker.check_model(engine, full_check=True)
    # every layer says how it runs, or why it was left alone
    for layer in manifest.layers:
        if layer.kind == "dense":
            assert layer.reason
            assert (layer.op, layer.lowering, layer.density, layer.index_bytes) == (None, None, 1.0, 0)
        else:
            assert layer.reason is None
            assert layer.lowering
            assert layer.why
            assert layer.filter_groups == loaded.index_sets[layer.name].filter_groups
    assert_counted(bundle)


def assert_counted(bundle: Bundle) -> None:
    """Parameters, MACs and index bytes against a count from the arrays on disk."""
    arrays = load_file(bundle.file("index_sets.safetensors"))
    removed_params, removed_macs, index_bytes, seen = 0, 0, 0, set()
    for layer in bundle.manifest.layers:
        f, c, r, s = layer.shape
        pixels = layer.output_size[0] * layer.output_size[1]
        retained = f * c * r * s
        if f"{layer.name}.taps" in arrays:
            part = {name: arrays[f"{layer.name}.{name}"] for name in ("group_ptr", "entry_ptr", "taps")}
            retained = 0
            for g in range(len(part["group_ptr"]) - 1):
                members = int(part["group_ptr"][g + 1] - part["group_ptr"][g])
                entries = part["taps"][part["entry_ptr"][g] : part["entry_ptr"][g + 1]]
                retained += members * sum(int(taps).bit_count() for taps in entries)
            if f"{layer.name}.nm_mask" in arrays:
                retained = sum(int(byte).bit_count() for byte in arrays[f"{layer.name}.nm_mask"])
            assert layer.density == pytest.approx(retained / (f * c * r * s))
        biases = layer.dense_params - f * c * r * s
        assert biases in (0, f)
        assert layer.retained_params == retained + biases
        assert layer.dense_macs == f * c * r * s * pixels
        assert layer.retained_macs == retained * pixels
        removed_macs += (f * c * r * s - retained) * pixels
        if layer.name not in seen:  # a weight that two nodes share is stored once
            seen.add(layer.name)
            removed_params += f * c * r * s - retained
            size = sum(array.nbytes for name, array in arrays.items() if name.rpartition(".")[0] == layer.name)
            assert layer.index_bytes == size
            index_bytes += size
    totals = bundle.manifest.totals
    assert totals.dense_params - totals.retained_params == removed_params
    assert totals.dense_macs - totals.retained_macs == removed_macs
    assert totals.index_bytes == index_bytes


def assert_verified(bundle: Bundle, **options: Any) -> None:
    report = trtkp.verify(bundle, **options)
    assert report.ok, [check.summary for check in report.checks]
    statuses = {check.artefact: check.status for check in report.checks}
    engine = "verified" if bundle.manifest.backend == "onnxruntime" else statuses["engine"]
    ranges = {"activations": "verified"} if bundle.manifest.precision == "fp16" else {}
    assert statuses == {
        "dense masked ONNX": "verified", "model.onnx": "verified", "engine.onnx": "verified", "engine": engine,
        **ranges,
    }  # fmt: skip


def assert_graphs_agree(bundle: Bundle) -> None:
    """``engine.onnx`` and ``model.onnx`` against the dense masked net, where half precision is far from the source."""
    import onnx_ir as ir

    packed = ir.load(bundle.file("model.onnx"))
    shapes = {name: tuple(limits["min"]) for name, limits in bundle.manifest.profile.items()}
    for name in ("model.onnx", "engine.onnx"):
        check = compare_graphs(name, ir.load(bundle.file(name)), dense_graph(packed), shapes, bundle.manifest.precision)
        assert check.status == "verified", check.summary


# --- the digits net ---------------------------------------------------------------------------------------------------

KINDS = {"none": "pattern", "per-channel": "pattern", "per-filter": "stripe", "per-layer": "stripe"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16 io"])
@pytest.mark.parametrize("share", KINDS)
def test_every_share_and_precision_in_onnxruntime(
    digits: Path, digits_onnx: Path, tmp_path: Path, share: str, precision: str
) -> None:
    source = digits if precision == "fp32" else digits_onnx
    bundle = build(source, tmp_path / "b", share=share, precision=precision[:4], keep_io=not precision.endswith("io"))
    assert_whole(bundle)
    assert_verified(bundle)
    layers = {layer.name: layer for layer in bundle.manifest.layers}
    assert layers["stem.0.weight"].reason == "stem"
    pruned = [layer for name, layer in layers.items() if name != "stem.0.weight"]
    assert len(pruned) == 4
    for layer in pruned:
        assert layer.kind == KINDS[share]
        assert layer.density == pytest.approx(4 / 9)
        assert layer.filter_groups == 1 if share in ("per-channel", "per-layer") else layer.filter_groups > 1
    bodies = {"stripe": "StripeConv", "pattern": "PatternConv"}
    ops = [layer.op.removeprefix(bodies[layer.kind]) for layer in pruned if layer.op]
    assert ops == ["Relu", "Relu", "AddRelu", "Relu"]  # the whole epilogue is fused
    dtype = "float16" if precision == "fp16 io" else "float32"
    with bundle.open() as runner:
        assert runner.inputs[0].dtype == runner.outputs[0].dtype == dtype
    wanted = {"n": 4, "ratio": None, "allocation": "uniform", "share": share}
    assert bundle.manifest.settings.items() >= wanted.items()


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("share", ["none", "per-layer"])
def test_tensorrt_rtx(digits_onnx: Path, tmp_path: Path, share: str, precision: str) -> None:
    bundle = build(digits_onnx, tmp_path / "b", share=share, precision=precision, **RTX)
    assert_whole(bundle)
    assert_verified(bundle)
    assert bundle.manifest.targets == ["sm86"]
    assert bundle.manifest.plan.status == "unmeasured"
    dense = build(digits_onnx, tmp_path / "d", "none", precision=precision, **RTX)
    assert bundle.file("model.engine").stat().st_size <= 1.01 * dense.file("model.engine").stat().st_size


def test_dense_build(digits: Path, tmp_path: Path) -> None:
    bundle = build(digits, tmp_path / "b", "none")
    assert_whole(bundle)
    assert_verified(bundle)
    assert bundle.index_sets == {}
    assert {layer.reason for layer in bundle.manifest.layers} == {"method none"}
    totals = bundle.manifest.totals
    assert (totals.retained_params, totals.retained_macs) == (totals.dense_params, totals.dense_macs)
    net = DigitsCnn(16)
    assert totals.dense_params == sum(p.numel() for p in net.parameters())
    assert bundle.manifest.warnings == []


def test_same_build_twice_is_equal_byte_for_byte(digits: Path, tmp_path: Path) -> None:
    once, again = (build(digits, tmp_path / name, share="per-layer", lowering="rectangles") for name in "ab")
    for name in ("index_sets.safetensors", "model.onnx", "engine.onnx"):
        assert once.file(name).read_bytes() == again.file(name).read_bytes()
    assert once.manifest.plan.status == "forced"
    assert {layer.lowering for layer in once.manifest.layers} == {None, "rectangles"}


def test_zeros_that_are_there(digits: Path, tmp_path: Path) -> None:
    """Prune a net by hand, save it, and build from its zeros: the index sets are those that made them."""
    pruned = build(digits, tmp_path / "kep", share="per-filter", lowering="dense")
    torch.manual_seed(0)
    net = settled(DigitsCnn(16), (1, 16, 16))
    with torch.no_grad():
        for name, index in pruned.index_sets.items():
            net.get_parameter(name).mul_(torch.from_numpy(index.mask()))
    torch.save(net.state_dict(), tmp_path / "zeros.pt")
    # a state dict this time; of another module path the factory is the same
    found = build(
        tmp_path / "zeros.pt", tmp_path / "zeros", "from-zeros",
        arch="tests.test_pipeline:narrow_digits", input_shape=("1x1x16x16",), lowering="dense",
    )  # fmt: skip
    assert_whole(found)
    assert_verified(found)
    assert {layer.name for layer in found.manifest.layers if layer.kind == "dense"} == {"stem.0.weight"}
    masks = {name: index.mask() for name, index in found.index_sets.items()}
    assert masks.keys() == pruned.index_sets.keys()
    for name, index in pruned.index_sets.items():
        np.testing.assert_array_equal(masks[name], index.mask())
    assert found.file("index_sets.safetensors").read_bytes() == pruned.file("index_sets.safetensors").read_bytes()


def narrow_digits() -> nn.Module:
    return DigitsCnn(16)


def test_accuracy_before_and_after(classifier: Path, tmp_path: Path) -> None:
    from trtkp.data import LabelledData
    from trtkp.model import load_model

    images = np.random.default_rng(1).standard_normal((70, 3, 8, 8)).astype(np.float32)
    labels = load_model(classifier).run({"image": images})["y"].argmax(axis=1)
    labels[:7] = (labels[:7] + 1) % 5
    seen: list[str] = []
    bundle = trtkp.build(
        classifier, tmp_path / "b", n=1, data=LabelledData(images, labels), progress=lambda *s: seen.append(s[0])
    )
    assert bundle.manifest.accuracy is not None
    assert bundle.manifest.accuracy["dense"] == 0.9
    with bundle:
        found = bundle.run({"image": images[:64]})["y"].argmax(axis=1)
        found = np.append(found, bundle.run({"image": images[64:]})["y"].argmax(axis=1))
    assert bundle.manifest.accuracy["pruned"] == pytest.approx((found == labels).mean())
    assert bundle.manifest.accuracy["pruned"] != 0.9
    assert not [path.name for path in bundle.path.iterdir() if path.name.startswith(".")]
    assert seen[0] == "Load"
    assert {"Prune", "Rewrite", "Plan", "Check", "Build", "Accuracy"} <= set(seen)


# --- foreign ONNX files -----------------------------------------------------------------------------------------------


def test_foreign_onnx_warns_of_folded_statistics(classifier: Path, tmp_path: Path) -> None:
    warning = "batch normalisation seems folded into the weights"
    scored = build(classifier, tmp_path / "kep")
    assert_whole(scored)
    assert_verified(scored)
    assert any(warning in line for line in scored.manifest.warnings)
    assert not any(warning in line for line in build(classifier, tmp_path / "none", "none").manifest.warnings)


def with_zeros(source: Path, target: Path) -> Path:
    """w1 keeps the left column of every kernel, w2 every other channel."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            array[..., 1:] = 0
        if tensor.name == "w2":
            array[:, ::2] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, target)
    return target


def test_foreign_onnx_with_zeros(classifier: Path, tmp_path: Path) -> None:
    path = with_zeros(classifier, tmp_path / "zeros.onnx")
    bundle = build(path, tmp_path / "b", "from-zeros")
    assert_whole(bundle)
    assert_verified(bundle)
    kinds = {layer.name: (layer.kind, layer.density, layer.op) for layer in bundle.manifest.layers}
    assert kinds == {
        "w0": ("dense", 1.0, None),
        "w1": ("stripe", pytest.approx(1 / 3), "StripeConvRelu"),
        "w2": ("kernel", 0.5, "KernelIndexConvRelu"),
    }
    assert {layer.name: layer.reason for layer in bundle.manifest.layers}["w0"] == "the method removes nothing from it"
    assert not any("batch normalisation" in line for line in bundle.manifest.warnings)


def test_anonymous_initialisers_and_constant_nodes(classifier: Path, tmp_path: Path) -> None:
    """Weights called ``onnx::Conv_12``, nodes without names, and a weight in a Constant node."""
    model = onnx.load(with_zeros(classifier, tmp_path / "zeros.onnx"))
    new = {tensor.name: f"onnx::Conv_{i + 10}" for i, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]
    for node in model.graph.node:
        node.name = ""
        for i, name in enumerate(node.input):
            node.input[i] = new.get(name, name)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == new["w2"])
    constant = helper.make_node("Constant", [], [weight.name], value=weight)
    model.graph.node.insert(0, constant)
    model.graph.initializer.remove(weight)
    onnx.save(model, tmp_path / "anonymous.onnx")
    bundle = build(tmp_path / "anonymous.onnx", tmp_path / "b", "from-zeros")
    assert_whole(bundle)
    assert_verified(bundle)
    assert [layer.kind for layer in bundle.manifest.layers] == ["dense", "stripe", "kernel"]


def test_half_precision_source_needs_fp16(classifier: Path, tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(classifier)), tmp_path / "half.onnx")
    with pytest.raises(InputError, match=r"half\.onnx: the model is in half precision; use --precision fp16"):
        build(tmp_path / "half.onnx", tmp_path / "b")
    bundle = build(tmp_path / "half.onnx", tmp_path / "b", precision="fp16")
    assert_whole(bundle)
    assert_verified(bundle)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batch(tmp_path: Path, batch: int) -> None:
    torch.manual_seed(0)
    path = save_program(DigitsCnn(16), tmp_path / "fixed.pt2", (1, 16, 16), batch=(batch, batch))
    bundle = build(path, tmp_path / "b", share="per-layer")
    assert_whole(bundle)
    assert_verified(bundle)
    shape = [batch, 1, 16, 16]
    assert bundle.manifest.profile == {"x": {"min": shape, "opt": shape, "max": shape}}
    # costs are per sample whatever the batch
    assert bundle.manifest.totals.dense_macs == 2_691_712
    with pytest.raises(InputError, match="does not fit the input"):
        build(path, tmp_path / "c", opt=("2x1x16x16",))


def test_batch_range_of_the_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = save_program(DigitsCnn(16), tmp_path / "range.pt2", (1, 16, 16), batch=(4, 12))
    bundle = build(path, tmp_path / "b")
    assert_verified(bundle)
    assert {key: shape[0] for key, shape in bundle.manifest.profile["x"].items()} == {"min": 4, "opt": 8, "max": 12}
    assert bundle.manifest.totals.dense_macs == 2_691_712
    assert [result.batch for result in trtkp.bench([bundle], runs=1, warmup=0)] == [8]
    with pytest.raises(InputError, match=r"outside 4\.\.12"):
        build(path, tmp_path / "c", min=("2x1x16x16",))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_program(UNet(8), tmp_path_factory.mktemp("unet") / "unet.pt2", (3, 32, 32), size_step=8)


@needs_rtx
@pytest.mark.slow
def test_dynamic_height_and_width(unet: Path, tmp_path: Path) -> None:
    shapes = {"min": ("1x3x16x24",), "opt": ("2x3x32x40",), "max": ("4x3x64x48",)}
    bundle = build(unet, tmp_path / "b", share="per-layer", **shapes)
    assert_whole(bundle)
    assert_verified(bundle)
    assert bundle.manifest.profile["x"] == {"min": [1, 3, 16, 24], "opt": [2, 3, 32, 40], "max": [4, 3, 64, 48]}
    assert bundle.manifest.layers[0].output_size == (32, 40)
    assert [record for record in bundle.manifest.inputs[0].shape if isinstance(record, int)] == [3]
    with bundle.open() as runner:
        assert next(iter(runner.run({"x": np.zeros((3, 3, 64, 16), np.float32)}).values())).shape == (3, 2, 64, 16)
    engine = build(as_onnx(unet), tmp_path / "e", share="per-layer", precision="fp16", **shapes, **RTX)
    assert_whole(engine)
    assert_graphs_agree(engine)
    grown = [reason for name, reason in bundle.manifest.left_out.items() if "grow" in name]
    assert grown == ["transposed convolution"] * 3
    ops = {node.op_type for node in nodes_of(bundle, "model.onnx") if node.domain}
    assert ops == {"StripeConvLeakyRelu"}


# --- other families ---------------------------------------------------------------------------------------------------


def build_family(net: nn.Module, shape: tuple[int, ...], tmp_path: Path, **options: Any) -> Bundle:
    """In fp32 for onnxruntime, and in fp16 for TensorRT-RTX."""
    path = save_program(net, tmp_path / "net.pt2", shape)
    share = options.pop("share", "per-layer")
    bundle = build(path, tmp_path / "ort", share=share, opt=(f"1x{'x'.join(map(str, shape))}",), **options)
    assert_whole(bundle)
    assert_verified(bundle)
    path = as_onnx(path)
    half = build(path, tmp_path / "rtx", share=share, precision="fp16", **options, **RTX)
    assert_whole(half)
    assert_graphs_agree(half)
    dense = build(path, tmp_path / "dense", "none", precision="fp16", **RTX)
    assert half.file("model.engine").stat().st_size <= 1.01 * dense.file("model.engine").stat().st_size
    assert {layer.name: layer.op for layer in half.manifest.layers} == {
        layer.name: layer.op for layer in bundle.manifest.layers
    }
    return bundle


@needs_rtx
@pytest.mark.slow
def test_mobile_net(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = build_family(mobile_net_like(), (3, 96, 96), tmp_path)
    layers = {layer.name.removesuffix(".weight"): layer for layer in bundle.manifest.layers}
    assert layers["stem.0"].reason == "stem"
    assert layers["blocks.0.depthwise.0"].reason == "depthwise"
    assert layers["blocks.0.expand.0"].reason == "1x1 kernel: a plane of one element has nothing to drop"
    assert (layers["blocks.3.grouped.0"].groups, layers["blocks.3.grouped.0"].op) == (4, "StripeConvSilu")
    assert layers["blocks.3.dense.0"].op == "StripeConvAddSilu"
    assert layers["blocks.6.grouped.0"].op == "StripeConvHardSwish"
    assert layers["blocks.6.dense.0"].op == "StripeConvAddHardSwish"
    assert {layer.kind for name, layer in layers.items() if "blocks.3." in name} == {"stripe"}


@needs_rtx
@pytest.mark.slow
def test_dense_net(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = build_family(DenseNetLike(growth=16, depths=(2, 2)), (3, 32, 32), tmp_path, share="per-channel")
    pruned = [layer for layer in bundle.manifest.layers if layer.kind != "dense"]
    assert [layer.op for layer in pruned] == ["PatternConv"] * 4  # a Concat follows, nothing to fuse
    assert "Concat" in {node.op_type for node in nodes_of(bundle, "engine.onnx")}


# --- odd graphs -------------------------------------------------------------------------------------------------------


class TwoIn(nn.Module):
    """Two images in, two results out; the first result is half of the second's way."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.relu(self.body(torch.relu(self.left(left) + self.right(right))))
        return both, self.head(both).mean((2, 3))


class Shared(nn.Module):
    """One weight, two convolutions; the second keeps a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.conv(x))
        return torch.relu(self.conv(y) + y)


class InputTwice(nn.Module):
    """The model's input goes into two convolutions and comes back as a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))) + x) + self.b(x)


class ResidualIsInput(nn.Module):
    """``conv(x) + x``, whose X and residual are one value, before and after an output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x) + x
        return y, torch.relu(self.b(y) + y)


def save_odd(net: nn.Module, path: Path, *feeds: Tensor) -> Path:
    dim = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        torch.export.save(torch.export.export(net.eval(), feeds, dynamic_shapes=tuple({0: dim} for _ in feeds)), path)
    return path


@pytest.mark.parametrize("lowering", ["auto", "rectangles", "taps"])
@pytest.mark.parametrize(
    ("factory", "channels", "ops"),
    [
        (TwoIn, (3, 1), [None, None, "Relu", ""]),
        (Shared, (3,), [None, "Relu", "AddRelu"]),
        (InputTwice, (4,), ["Relu", "AddRelu", "Add"]),
        (ResidualIsInput, (4,), ["Add", "AddRelu"]),
    ],
)
def test_odd_graphs(
    tmp_path: Path, factory: Callable[[], nn.Module], channels: tuple[int, ...], ops: list[str | None], lowering: str
) -> None:
    torch.manual_seed(0)
    path = save_odd(factory(), tmp_path / "odd.pt2", *(torch.zeros(2, c, 8, 8) for c in channels))
    everything: tuple[str, ...] = () if factory in (TwoIn, Shared) else ("*",)  # the stem is all there is
    bundle = build(path, tmp_path / "b", share="per-layer", include=everything, lowering=lowering)
    found = [layer.op and layer.op.removeprefix("StripeConv") for layer in bundle.manifest.layers]
    assert found == ops
    assert_whole(bundle)
    assert_verified(bundle)
    assert trtkp.bench([bundle], batch=3, runs=1, warmup=0)[0].batch == 3


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("two") / "two.pt2"
    return save_odd(TwoIn(), path, torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8))


def test_shapes_of_two_inputs(two_inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the model has 2 inputs.*name the input"):
        build(two_inputs, tmp_path / "b", opt=("4x3x8x8",))
    bundle = build(two_inputs, tmp_path / "b", share="per-layer", opt=("left:4x3x8x8",))
    assert_verified(bundle)
    opt = {name: shapes["opt"] for name, shapes in bundle.manifest.profile.items()}
    assert opt == {"left": [4, 3, 8, 8], "right": [4, 1, 8, 8]}  # one batch, one size


@needs_rtx
def test_two_inputs_in_tensorrt_rtx(two_inputs: Path, tmp_path: Path) -> None:
    bundle = build(two_inputs, tmp_path / "b", precision="fp16", **RTX)
    assert_whole(bundle)
    assert_verified(bundle)
    assert [record.name for record in bundle.manifest.inputs] == ["left", "right"]
    assert len(bundle.manifest.outputs) == 2


# --- bad requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "--precision int4: not known; use fp32, fp16, int8 or fp8"),
        ({"threads": 0}, "--threads 0"),
        ({"backend": "tpu"}, "no backend 'tpu'"),
        ({"lowering": "winograd"}, "--lowering winograd: not known; use one of auto, dense, box"),
        ({"targets": ("sm86",)}, "--target sm86 means nothing to backend onnxruntime"),
        ({"include": ("w9*",)}, r"no convolution is called w9\*; the model has w0, w1, w2"),
        ({"skip": ("w9",)}, "no convolution is called w9"),
        ({"min": ("8x3x8x8",), "opt": ("4x3x8x8",)}, "min <= opt <= max"),
        ({"opt": ("4x3x8",)}, "has 3 dimensions"),
        ({"opt": ("4x3x9x8",)}, "does not fit the input"),
        ({"opt": ("4x3xax8",)}, "not a shape"),
        ({"opt": ("other:4x3x8x8",)}, "no input of that name"),
    ],
)
def test_bad_options_write_nothing(classifier: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(classifier, tmp_path / "b", **{"backend": "onnxruntime"} | options)
    assert list(tmp_path.iterdir()) == []


def test_data_that_does_not_fit_is_found_before_the_work(classifier: Path, tmp_path: Path) -> None:
    from trtkp.data import LabelledData

    seen: list[str] = []
    data = LabelledData(np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int64))
    with pytest.raises(InputError, match=r"samples of shape \[1, 8, 8\], the model takes \[3, 8, 8\]"):
        trtkp.build(classifier, tmp_path / "b", data=data, progress=lambda *step: seen.append(step[0]))
    assert set(seen) == {"Load"}


def test_fp16_that_overflows_is_no_bundle(tmp_path: Path) -> None:
    model = onnx.load(write_classifier(tmp_path / "net.onnx"))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1e6, tensor.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(InputError, match="float16 ends at 65504") as caught:
        build(tmp_path / "large.onnx", tmp_path / "b", precision="fp16")
    assert "--precision fp32" in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_source_is_found_through_a_linked_folder(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    source = tmp_path / "net.onnx"
    source.write_bytes(classifier.read_bytes())
    bundle = build(source, tmp_path / "link" / "b")
    assert bundle.manifest.source.file == "../../../net.onnx"
    assert_verified(trtkp.load(tmp_path / "link" / "b"))


def test_manifest_holds_no_absolute_path(digits: Path, tmp_path: Path) -> None:
    bundle = build(digits, tmp_path / "b")
    text = (bundle.path / "manifest.json").read_text()
    assert str(tmp_path.parent) not in text
    assert str(Path.home()) not in json.loads(text)["source"]["file"]
    for name in ("model.onnx", "engine.onnx"):
        assert str(tmp_path.parent).encode() not in bundle.file(name).read_bytes()


class Stack(nn.Module):
    """Two convolutions over whatever ``before`` makes of the input."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = before
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.before(x))))


@pytest.mark.parametrize(
    ("shape", "before", "images"),
    [
        pytest.param((3, 16, 16), lambda x: x[None], 1, id="no batch"),
        pytest.param((2, 5, 3, 16, 16), lambda x: x.flatten(0, 1), 5, id="clips"),
    ],
)
def test_macs_of_a_sample(tmp_path: Path, shape: tuple[int, ...], before: Any, images: int) -> None:
    """Layers and totals count the same samples, so that what is left is never less than nothing."""
    program = torch.export.export(Stack(before).eval(), (torch.zeros(shape),))
    torch.export.save(program, tmp_path / "net.pt2")
    bundle = build(tmp_path / "net.pt2", tmp_path / "b", share="per-layer", lowering="box")
    totals, (first, second) = bundle.manifest.totals, bundle.manifest.layers
    assert (first.dense_macs, second.dense_macs) == (images * 256 * 27 * 8, images * 256 * 72 * 8)
    assert totals.dense_macs == first.dense_macs + second.dense_macs
    assert totals.retained_macs == first.dense_macs + second.dense_macs * 4 // 9
    assert trtkp.verify(bundle).ok


def test_number_before_the_images(tmp_path: Path) -> None:
    class Scaled(Stack):
        def forward(self, scale: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) * scale

    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(
        Scaled(lambda x: x).eval(), (torch.tensor(2.0), torch.zeros(2, 3, 16, 16)), dynamic_shapes=(None, {0: batch})
    )
    torch.export.save(program, tmp_path / "net.pt2")
    bundle = build(tmp_path / "net.pt2", tmp_path / "b", share="per-layer")
    assert bundle.manifest.totals.dense_macs == 256 * (27 + 72) * 8
    assert trtkp.verify(bundle).ok
    assert trtkp.bench([bundle], warmup=0, runs=1)[0].batch == 8


def test_sizes_without_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 3, 3), (8, 8, 3, 3))]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "a"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
            helper.make_node("Conv", ["c", "b"], ["y"], pads=[0, 1, 2, 1]),
        ],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 3, None, None])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 8, None, None])],
        [numpy_helper.from_array(weight, name) for name, weight in zip("ab", weights, strict=True)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "n.onnx")
    with pytest.raises(InputError, match=r"n\.onnx: layer x .*dimension 2 .* its range is not known"):
        build(tmp_path / "n.onnx", tmp_path / "b")
    bundle = build(
        tmp_path / "n.onnx", tmp_path / "b", share="per-layer", lowering="rectangles",
        min=["1x3x15x15"], opt=["2x3x40x33"], max=["4x3x64x64"],
    )  # fmt: skip
    assert trtkp.verify(bundle).ok


@needs_rtx
def test_graph_that_the_parser_refuses_names_the_model(tmp_path: Path, classifier: Path) -> None:
    proto = onnx.load(classifier)
    proto.graph.node.insert(0, helper.make_node("Unique", ["image"], ["once"], "unique"))
    proto.graph.output.append(helper.make_tensor_value_info("once", onnx.TensorProto.FLOAT, [None]))
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(trtkp.JobError) as error:
        build(tmp_path / "odd.onnx", tmp_path / "b", **RTX)
    assert error.value.file == str(tmp_path / "odd.onnx")
    assert error.value.layer == "unique"


def without_filters(source: Path, target: Path) -> Path:
    """Three of w0's filters are zero, and w2 does not read two more of w1's."""
    model = onnx.load(source)
    for stored in model.graph.initializer:
        array = numpy_helper.to_array(stored).copy()
        if stored.name == "w0":
            array[[2, 5, 11]] = 0
        elif stored.name == "w2":
            array[:, [0, 31]] = 0
        stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    onnx.save_model(model, target)
    return target


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_dead_parts_leave_the_engine_alone(
    classifier: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = without_filters(classifier, tmp_path / "net.onnx")
    bundle = build(path, tmp_path / "b", "from-zeros", lowering="dense", precision=precision)
    weights = {w.name: tuple(w.dims) for w in onnx.load(bundle.file("engine.onnx")).graph.initializer}
    convolutions = [weights[node.input[1]] for node in nodes_of(bundle, "engine.onnx") if node.op_type == "Conv"]
    assert convolutions == [(13, 3, 3, 3), (30, 13, 3, 3), (32, 30, 3, 3)]
    packed = [list(a.ints) for n in nodes_of(bundle, "model.onnx") for a in n.attribute if a.name == "weight_shape"]
    assert packed == [[16, 3, 3, 3], [32, 32, 3, 3]]  # what the source has: index sets are for its weights
    assert set(load_file(bundle.file("index_sets.safetensors"))) >= {"w0.filters", "w2.filters"}
    dead = bundle.manifest.plan.dead
    assert dead is not None
    assert (dead.filters, dead.channels) == (5, 5)
    removed = {"w0": 3 * 27, "w1": (32 * 16 - 30 * 13) * 9, "w2": 2 * 32 * 9}
    assert {part.name: part.params for part in dead.layers} == removed
    assert dead.macs == 64 * sum(removed.values())
    assert trtkp.verify(bundle.path).ok
    inspected(bundle, json=False)
    assert f"removed 5 filters and 5 channels that were read: {dead.params:,} params" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_gathers_of_a_plan_are_folded(classifier: Path, tmp_path: Path, precision: str) -> None:
    """Two lists of channels a layer, filters of both mixed: the plan's Gathers at the outputs go."""
    model = onnx.load(classifier)
    for stored in model.graph.initializer:
        array = numpy_helper.to_array(stored).copy()
        if stored.name in ("w1", "w2"):
            half = array.shape[1] // 2
            array[::2, :half], array[1::2, half:] = 0, 0
        stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    onnx.save_model(model, tmp_path / "net.onnx")
    samples = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples, y=np.arange(8) % 5)
    bundle = trtkp.build(
        tmp_path / "net.onnx",
        tmp_path / "b",
        method="from-zeros",
        options=BuildOptions(lowering="gather", precision=precision),
        data=tmp_path / "samples.npz" if precision == "int8" else None,
    )
    assert [layer.lowering for layer in bundle.manifest.layers] == [None, "gather", "gather"]
    gathers = bundle.manifest.plan.gathers
    assert gathers is not None
    assert gathers.before == 4
    assert gathers.after == 1  # between the two grouped layers, whose groups are not the same channels
    kinds = [node.op_type for node in nodes_of(bundle, "engine.onnx")]
    assert kinds.count("Gather") == 1
    assert trtkp.verify(bundle.path).ok


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_four_inside_lists(precision: str, digits: Path, tmp_path: Path) -> None:
    """From --nm to the operators, the counts and a whole bundle."""
    options = BuildOptions(precision=precision)
    bundle = trtkp.build(
        digits, tmp_path / "b", method="vskp", options=options, ratio=0.75, allocation="uniform", filter_group=16,
        nm="2:4",
    )  # fmt: skip
    assert_whole(bundle)
    pruned = [layer for layer in bundle.manifest.layers if layer.kind != "dense"]
    assert pruned
    for layer in pruned:
        index = bundle.index_sets[layer.name]
        assert index.nm_mask is not None
        assert layer.retained_params < layer.dense_params
        assert index.retained <= 0.3 * np.prod(index.shape)
    ops = {node.op_type for node in nodes_of(bundle, "model.onnx") if node.domain == "trtkp"}
    assert ops
    assert all(op.startswith("KernelIndexConv24") for op in ops)
    assert bundle.manifest.settings["nm"] == "2:4"
    assert_verified(bundle)
