"""ONNX files: from our own graphs, from other exporters' habits, broken, and with data elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from trtkp.errors import InputError
from trtkp.model import load_model
from trtkp.shapes import Dim

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
X = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
FLOAT = TensorProto.FLOAT


def make_model(
    nodes: list[Any] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    batch: Any = "N",
    out: str = "y",
) -> ModelProto:
    nodes = nodes or [helper.make_node("Conv", ["x", "W"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info(out, FLOAT, [None] * 4)],
        [numpy_helper.from_array(v, k) for k, v in (weights if weights is not None else {"W": W}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(model: ModelProto, folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_loads(tmp_path: Path) -> None:
    model = load_model(save(make_model(), tmp_path))
    assert model.format == "onnx"
    assert model.reference_name == "source ONNX"
    assert model.inputs[0].shape == (Dim("N"), 3, 8, 8)
    assert list(model.parameters()) == ["W"]
    y = model.run({"x": X})["y"]
    changed = model.run({"x": X}, {"W": np.zeros_like(W)})["y"]
    assert y.any()
    assert not changed.any()
    np.testing.assert_array_equal(model.run({"x": X})["y"], y)
    with pytest.raises(InputError, match="no PyTorch module"):
        model.module()


def test_nodes_of_one_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], "same"),
        helper.make_node("Relu", ["c"], ["r"], "same"),
        helper.make_node("Neg", ["r"], ["y"], "same_1"),
    ]
    model = load_model(save(make_model(nodes), tmp_path))
    assert model.run({"x": X})["y"].any()
    assert len({node.name for node in model.graph().graph}) == 3


@pytest.mark.parametrize("batch", [None, "", 0, -1])
def test_nameless_batch(tmp_path: Path, batch: Any) -> None:
    proto = make_model()
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    if isinstance(batch, int):
        dim.dim_value = batch
    assert load_model(save(proto, tmp_path)).inputs[0].shape[0] == Dim("batch")


def test_input_without_rank(tmp_path: Path) -> None:
    proto = make_model()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match="not a valid ONNX model"):
        load_model(save(proto, tmp_path))


def test_weights_in_constants_and_behind_identities(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["K"], value=numpy_helper.from_array(W[:, :1])),
        helper.make_node("Identity", ["W"], ["W1"]),
        helper.make_node("Identity", ["W1"], ["W2"]),
        helper.make_node("Conv", ["x", "W2"], ["a"]),
        helper.make_node("Conv", ["a", "K2"], ["b"], group=4),
        helper.make_node("Conv", ["x", "W"], ["d"], strides=[2, 2]),
        helper.make_node("Conv", ["d", "K2"], ["e"], group=4),
        helper.make_node("ReduceSum", ["e"], ["f"]),
        helper.make_node("Add", ["b", "f"], ["y"]),
    ]
    nodes.insert(1, helper.make_node("Identity", ["K"], ["K2"]))
    model = load_model(save(make_model(nodes), tmp_path))
    assert set(model.parameters()) == {"W", "K"}
    graph = model.graph().graph
    assert [node.inputs[1].name for node in graph if node.op_type == "Conv"] == ["W", "K", "W", "K"]  # type: ignore[union-attr]
    y = model.run({"x": X})["y"]
    assert not np.array_equal(model.run({"x": X}, {"K": 2 * W[:, :1]})["y"], y)


def test_functions_are_inlined(tmp_path: Path) -> None:
    proto = make_model([helper.make_node("Block", ["x", "W"], ["y"], domain="own")])
    body = [helper.make_node("Conv", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    opset = helper.make_opsetid("", 20)
    proto.functions.append(helper.make_function("own", "Block", ["a", "b"], ["d"], body, [opset]))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    graph = load_model(save(proto, tmp_path)).graph()
    assert [node.op_type for node in graph.graph] == ["Conv", "Relu"]
    assert not graph.functions


def test_batch_norm_is_not_folded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
    ]
    weights = {"W": W, **{name: np.ones(4, np.float32) for name in "sbmv"}}
    model = load_model(save(make_model(nodes, weights), tmp_path))
    assert [node.op_type for node in model.graph().graph] == ["Conv", "BatchNormalization"]
    np.testing.assert_array_equal(model.parameters()["W"], W)


def test_old_opset(tmp_path: Path) -> None:
    proto = make_model(opset=11)
    model = load_model(save(proto, tmp_path))
    assert model.graph().opset_imports[""] == 18
    assert "opset 11" in model.warnings[0]
    assert "W" in model.parameters()


def test_opset_that_cannot_be_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Unsupported\nsecond line")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    with pytest.raises(InputError, match=r"opset 11 cannot be upgraded to 18 \(Unsupported\)"):
        load_model(save(make_model(opset=11), tmp_path))


def test_initialisers_listed_as_inputs(tmp_path: Path) -> None:
    proto = make_model()
    proto.graph.input.append(helper.make_tensor_value_info("W", FLOAT, W.shape))
    assert [spec.name for spec in load_model(save(proto, tmp_path)).inputs] == ["x"]


def test_quantised(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["Q", "scale", "zero"], ["D"], axis=0),
        helper.make_node("Conv", ["x", "D"], ["y"]),
    ]
    quantised: dict[str, np.ndarray] = {
        "Q": (W * 10).astype(np.int8),
        "scale": np.full(4, 0.1, np.float32),
        "zero": np.zeros(4, np.int8),
    }
    model = load_model(save(make_model(nodes, quantised), tmp_path))
    assert [node.op_type for node in model.graph().graph] == ["DequantizeLinear", "Conv"]
    assert model.run({"x": X})["y"].shape == (2, 4, 6, 6)


def drop_data(proto: ModelProto) -> None:
    proto.graph.initializer[0].ClearField("raw_data")


def short_data(proto: ModelProto) -> None:
    proto.graph.initializer[0].raw_data = b"1234"


def negative(proto: ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = -4


def huge(proto: ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 1 << 60


def sparse(proto: ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "S")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))


def twice(proto: ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def bad_type(proto: ModelProto) -> None:
    proto.graph.initializer[0].data_type = 99


def bad_operator(proto: ModelProto) -> None:
    proto.graph.node[0].op_type = "Confuse"


def unknown_value(proto: ModelProto) -> None:
    proto.graph.node[0].input[0] = "nowhere"


def no_opset(proto: ModelProto) -> None:
    del proto.opset_import[:]


def trained(proto: ModelProto) -> None:
    proto.training_info.add()


def no_nodes(proto: ModelProto) -> None:
    del proto.graph.node[:]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop_data, "0 of 108 values"),
        (short_data, "4 of 432"),
        (negative, "shape"),
        (huge, "shape"),
        (sparse, "sparse"),
        (twice, "two initialisers"),
        (bad_type, "type 99"),
        (bad_operator, "not a valid ONNX model"),
        (unknown_value, "not a valid ONNX model"),
        (no_opset, "no graph|opset"),
        (trained, "training information"),
        (no_nodes, "no nodes"),
    ],
)
def test_refused(tmp_path: Path, change: Callable[[ModelProto], None], match: str) -> None:
    proto = make_model()
    change(proto)
    with pytest.raises(InputError, match=match) as caught:
        load_model(save(proto, tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("opset", [14, 20])
def test_training_mode(tmp_path: Path, opset: int) -> None:
    outputs = ["y", "m2", "v2"]
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], outputs, training_mode=1)
    weights = {name: np.ones(3, np.float32) for name in "sbmv"}
    with pytest.raises(InputError, match="BatchNormalization is in training mode"):
        load_model(save(make_model([node], weights, opset=opset), tmp_path))


# --- external data ---------------------------------------------------------------------------------------------------


def external(proto: ModelProto, location: str, offset: str = "0", length: str | None = None) -> ModelProto:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": str(W.nbytes) if length is None else length}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return proto


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "w.bin").write_bytes(b"12345678" + W.tobytes())
    model = load_model(save(external(make_model(), "data/w.bin", "8"), folder))
    np.testing.assert_array_equal(model.parameters()["W"], W)
    assert model.run({"x": X})["y"].any()
    before = model.sha256
    (folder / "data" / "w.bin").write_bytes(b"x2345678" + W.tobytes())
    assert load_model(folder / "m.onnx").sha256 != before


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that Python opens."""
    names: list[str] = []
    original = os.open

    def watch(path: Any, *args: Any, **kwargs: Any) -> int:
        names.append(os.fspath(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", watch)
    return names


@pytest.mark.parametrize("way", ["parent", "absolute", "symlink", "folder link", "hard link", "backslash", "empty"])
def test_data_outside_the_folder(tmp_path: Path, opened: list[str], way: str) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(W.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    location = {
        "parent": "../secret.bin", "absolute": str(secret), "backslash": "..\\secret.bin", "empty": "",
        "folder link": "out/secret.bin",
    }.get(way, "w.bin")  # fmt: skip
    if way == "symlink":
        (folder / "w.bin").symlink_to(secret)
    if way == "folder link":
        (folder / "out").symlink_to(tmp_path)
    if way == "hard link":
        (folder / "w.bin").hardlink_to(secret)
    before = secret.stat().st_atime_ns
    with pytest.raises(InputError, match="external data refused"):
        load_model(save(external(make_model(), location), folder))
    assert not [name for name in opened if name.endswith(("secret.bin", "w.bin"))]
    assert secret.stat().st_atime_ns == before


@pytest.mark.parametrize(
    ("offset", "length", "match"),
    [
        ("4", None, "which has 432"),
        ("-4", None, "offset -4"),
        ("0", "99999999999999", "the tensor has 432"),
        ("0", "4", "the tensor has 432"),
        ("x", None, "not a number"),
        ("99999999999999999999", None, "which has 432"),
    ],
)
def test_data_beyond_the_file(tmp_path: Path, offset: str, length: str | None, match: str) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    with pytest.raises(InputError, match=match):
        load_model(save(external(make_model(), "w.bin", offset, length), tmp_path))


def test_data_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    path = save(external(make_model(), "w.bin"), tmp_path)
    with pytest.raises(InputError, match="is not there"):
        load_model(path)
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(InputError, match="not a regular file"):
        load_model(path)


def test_data_of_a_constant(tmp_path: Path) -> None:
    """The data of tensors inside nodes is guarded alike."""
    tensor = external(make_model(), "../secret.bin").graph.initializer[0]
    nodes = [helper.make_node("Constant", [], ["W"], value=tensor), helper.make_node("Conv", ["x", "W"], ["y"])]
    with pytest.raises(InputError, match="external data refused"):
        load_model(save(make_model(nodes, {}), tmp_path))


def test_written_by_onnx(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(make_model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    np.testing.assert_array_equal(load_model(path).parameters()["W"], W)
