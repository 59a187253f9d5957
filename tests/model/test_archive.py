"""Exported programs: what loads, with which names, shapes and ranges."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest
import torch
from torch import nn

from tests.model.conftest import Net, Shared, make_net, rewrite_zip, save_program
from trtkp.errors import InputError
from trtkp.model import SourceModel, load_model
from trtkp.shapes import Dim, TensorSpec

X = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)


def run_onnx(model: SourceModel, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnx_ir as ir

    proto = ir.to_proto(model.graph())
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def test_specs(program: Path) -> None:
    model = load_model(program)
    assert model.format == "pt2"
    assert model.reference_name == "PyTorch"
    assert model.warnings == []
    assert model.inputs == (TensorSpec("x", "float32", (Dim("batch", 1, 64), 3, 8, 8)),)
    assert [spec.shape for spec in model.outputs] == [(Dim("batch", 1, 64), 5)]
    assert model.sha256 == hashlib.sha256(program.read_bytes()).hexdigest()


def test_graph(program: Path) -> None:
    model = load_model(program)
    graph = model.graph()
    assert [node.op_type for node in graph.graph] == ["Conv", "BatchNormalization", "Relu", "ReduceMean", "Gemm"]
    assert {"conv.weight", "bn.weight", "bn.running_var", "fc.weight"} <= set(graph.graph.initializers)
    assert graph.opset_imports[""] >= 18
    assert not graph.functions
    assert [str(dim) for dim in graph.graph.inputs[0].shape or ()] == ["batch", "3", "8", "8"]
    assert [value.name for value in graph.graph.outputs] == [spec.name for spec in model.outputs]
    conv = next(iter(graph.graph))
    assert len(conv.inputs) == 2
    assert conv.inputs[1] is graph.graph.initializers["conv.weight"]


def test_graph_is_the_callers_own(program: Path) -> None:
    model = load_model(program)
    first = model.graph()
    first.graph.initializers["conv.weight"].name = "other"
    again = model.graph()
    assert "conv.weight" in again.graph.initializers
    tensor = again.graph.initializers["conv.weight"].const_value
    assert tensor is not None
    assert np.shares_memory(tensor.numpy(), model.parameters()["conv.weight"])


def test_reference_and_graph_agree(program: Path) -> None:
    model = load_model(program)
    with torch.no_grad():
        expected = make_net()(torch.tensor(X)).numpy()
    (name,) = (spec.name for spec in model.outputs)
    np.testing.assert_array_equal(model.run({"x": X})[name], expected)
    np.testing.assert_allclose(run_onnx(model, {"x": X})[0], expected, atol=1e-6)


def test_replaced_weights(program: Path) -> None:
    model = load_model(program)
    (name,) = (spec.name for spec in model.outputs)
    before = model.run({"x": X})[name]
    masked = model.parameters()["conv.weight"].copy()
    masked[:, 1] = 0
    net = make_net()
    with torch.no_grad():
        net.conv.weight.copy_(torch.tensor(masked))
        expected = net(torch.tensor(X)).numpy()
    np.testing.assert_array_equal(model.run({"x": X}, {"conv.weight": masked})[name], expected)
    np.testing.assert_array_equal(model.run({"x": X})[name], before)
    assert not np.array_equal(before, expected)


def test_parameters(program: Path) -> None:
    parameters = load_model(program).parameters()
    assert set(parameters) == {f"bn.{k}" for k in ("weight", "bias", "running_mean", "running_var")} | {
        "conv.weight", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert parameters["conv.weight"].shape == (4, 3, 3, 3)


def test_module_trains_apart_from_the_source(program: Path) -> None:
    model = load_model(program)
    module = model.module()
    assert dict(module.named_parameters()).keys() == dict(Net().named_parameters()).keys()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(torch.tensor(X)).square().sum().backward()
    optimizer.step()
    source = model.parameters()["conv.weight"]
    assert not np.array_equal(module.get_parameter("conv.weight").detach().numpy(), source)
    np.testing.assert_array_equal(source, make_net().conv.weight.detach().numpy())


@pytest.mark.parametrize(
    ("feeds", "match"),
    [
        ({}, "feeds are"),
        ({"y": X}, "feeds are"),
        ({"x": X[:, :2]}, "does not fit"),
        ({"x": np.zeros((65, 3, 8, 8), np.float32)}, "does not fit"),
    ],
)
def test_bad_feeds(program: Path, feeds: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_model(program).run(feeds)


def test_bad_weights(program: Path) -> None:
    model = load_model(program)
    with pytest.raises(InputError, match="no weight of that name"):
        model.run({"x": X}, {"conv.wieght": X})
    with pytest.raises(InputError, match="the weight is"):
        model.run({"x": X}, {"conv.weight": X})


def test_shared_weight_is_one_initialiser(tmp_path: Path) -> None:
    model = load_model(save_program(Shared().eval(), tmp_path / "shared.pt2", torch.zeros(2, 4, 8, 8)))
    graph = model.graph().graph
    weights = {node.inputs[1].name for node in graph if node.op_type == "Conv"}  # type: ignore[union-attr]
    assert len(weights) == 1
    assert weights <= set(model.parameters())
    assert sum(len(value.shape or ()) == 4 for value in graph.initializers.values()) == 1


@pytest.mark.parametrize("kwargs", [False, True])
def test_saved_on_a_gpu(program: Path, tmp_path: Path, kwargs: bool) -> None:
    """Device strings in the metadata, and in a node's arguments, name a GPU that is not here."""
    source = program
    if kwargs:

        class Shifted(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + torch.arange(8, device=x.device, dtype=torch.float32).to(device="cpu")

        source = save_program(Shifted().eval(), tmp_path / "cpu.pt2", torch.zeros(2, 3, 8, 8))

    def on_gpu(data: bytes) -> bytes:
        return data.replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')

    files = ["models/model.json", "data/weights/model_weights_config.json"]
    path = rewrite_zip(source, tmp_path / "gpu.pt2", dict.fromkeys(files, on_gpu))
    with zipfile.ZipFile(path) as archive:
        assert b'"cuda"' in archive.read(next(n for n in archive.namelist() if n.endswith(files[0])))
    model, plain = load_model(path), load_model(source)
    for mine, other in zip(model.run({"x": X}).values(), plain.run({"x": X}).values(), strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_allclose(run_onnx(model, {"x": X})[0], next(iter(model.run({"x": X}).values())), atol=1e-6)


def test_old_layout(program: Path, tmp_path: Path) -> None:
    """PyTorch up to 2.6 pickled the weights beside the JSON."""
    net = make_net()
    buffers: dict[str, io.BytesIO] = {name: io.BytesIO() for name in ("state_dict", "constants", "example_inputs")}
    torch.save(OrderedDict(torch.export.load(program).state_dict), buffers["state_dict"])
    torch.save({}, buffers["constants"])
    torch.save(((torch.zeros(2, 3, 8, 8),), {}), buffers["example_inputs"])
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(program) as new, zipfile.ZipFile(path, "w") as old:
        old.writestr("version", "8.1")
        name = next(name for name in new.namelist() if name.endswith("models/model.json"))
        old.writestr("serialized_exported_program.json", new.read(name))
        for part, buffer in buffers.items():
            old.writestr(f"serialized_{part}.pt", buffer.getvalue())
    with torch.no_grad():
        expected = net(torch.tensor(X)).numpy()
    np.testing.assert_array_equal(next(iter(load_model(path).run({"x": X}).values())), expected)


class Bottom(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Dropout2d(0.5), nn.RReLU()])
@pytest.mark.filterwarnings("ignore")
def test_training_mode(tmp_path: Path, layer: nn.Module) -> None:
    path = save_program(Bottom(layer).train(), tmp_path / "train.pt2", torch.ones(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"training mode; call model.eval\(\) before torch.export.export"):
        load_model(path)
    assert load_model(save_program(Bottom(layer).eval(), tmp_path / "eval.pt2", torch.ones(2, 3, 8, 8)))


def test_decomposed_training_mode(tmp_path: Path) -> None:
    program = torch.export.export(Bottom(nn.BatchNorm2d(3)).train(), (torch.ones(2, 3, 8, 8),)).run_decompositions()
    torch.export.save(program, tmp_path / "train.pt2")
    with pytest.raises(InputError, match="training mode"):
        load_model(tmp_path / "train.pt2")


def test_batch_norm_without_statistics(tmp_path: Path) -> None:
    layer = Bottom(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    path = save_program(layer, tmp_path / "stats.pt2", torch.ones(2, 3, 8, 8))
    with pytest.raises(InputError, match="track_running_stats=True"):
        load_model(path)


class Pair(nn.Module):
    """Two inputs, a dictionary with the same tensor twice and an input as it is."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        total = left + right
        return {"total": total, "same": total, "left": left}


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    feeds = (torch.zeros(2, 3), torch.zeros(2, 3))
    model = load_model(save_program(Pair().eval(), tmp_path / "pair.pt2", *feeds))
    arrays = {"left": X[:, 0, 0, :3], "right": X[:, 1, 0, :3]}
    results = model.run(arrays)
    assert len(results) == 3
    assert not set(results) & set(arrays)
    for mine, other in zip(results.values(), run_onnx(model, arrays), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    assert [value.name for value in model.graph().graph.outputs] == list(results)


def test_dynamic_image(tmp_path: Path) -> None:
    dim = torch.export.Dim
    sizes = ({0: dim("n", min=1, max=8), 2: dim("h", min=8, max=32), 3: dim("w", min=8, max=64)},)
    exported = torch.export.export(make_net(), (torch.zeros(2, 3, 8, 9),), dynamic_shapes=sizes)
    torch.export.save(exported, tmp_path / "image.pt2")
    model = load_model(tmp_path / "image.pt2")
    expected = (Dim("batch", 1, 8), 3, Dim("height", 8, 32), Dim("width", 8, 64))
    assert model.inputs[0].shape == expected
    feed = np.ones((1, 3, 20, 30), np.float32)
    np.testing.assert_allclose(run_onnx(model, {"x": feed})[0], next(iter(model.run({"x": feed}).values())), atol=1e-6)


def test_input_shape_is_held_against_the_program(program: Path) -> None:
    assert load_model(program, input_shape=["4x3x8x8"]).format == "pt2"
    with pytest.raises(InputError, match=r"outside 1\.\.64"):
        load_model(program, input_shape={"x": (65, 3, 8, 8)})
    assert "not used" in load_model(program, arch="a:b").warnings[0]


def test_unknown_version(program: Path, tmp_path: Path) -> None:
    path = rewrite_zip(program, tmp_path / "new.pt2", {"archive_version": b"7"})
    with pytest.raises(InputError, match="version"):
        load_model(path)

    def newer(data: bytes) -> bytes:
        value = json.loads(data)
        value["schema_version"]["major"] = 99
        return json.dumps(value).encode()

    path = rewrite_zip(program, tmp_path / "schema.pt2", {"models/model.json": newer})
    with pytest.raises(InputError, match="cannot read the exported program"):
        load_model(path)


def test_no_grad_inside_forward(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y = 2 * x
            return y + 1

    path = save_program(Frozen().eval(), tmp_path / "frozen.pt2", torch.ones(2, 3, 8, 8))
    with pytest.raises(InputError, match="wrap_with_set_grad_enabled is not supported: leave no_grad"):
        load_model(path)


def test_in_place_operators(tmp_path: Path) -> None:
    """Neither the feeds nor the source's buffers change."""
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Hardtanh(inplace=True)).eval()
    model = load_model(save_program(net, tmp_path / "in_place.pt2", torch.ones(2, 3, 8, 8)))
    feed = X.copy()
    (name,) = (spec.name for spec in model.inputs)
    result = next(iter(model.run({name: feed}).values()))
    np.testing.assert_array_equal(feed, X)
    np.testing.assert_allclose(run_onnx(model, {name: feed})[-1], result, atol=1e-6)
