"""Hostile model files: every one is loaded, or refused in one line that names it, in bounded time and memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.model.conftest import make_net, rewrite_zip, save_program

ROOT = Path(__file__).parents[2]
MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


Check = Callable[..., dict[str, tuple[str, str]]]


@pytest.fixture(scope="module")
def check() -> Iterator[Check]:
    """Loads the files of a folder in a child process; each is loaded, or refused in one line with its path."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "tests.attack.loading"]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def run(folder: Path, *, some_load: bool = True) -> dict[str, tuple[str, str]]:
        assert child.stdin is not None
        assert child.stdout is not None
        print(folder, file=child.stdin, flush=True)
        found: dict[str, tuple[str, str]] = {}
        for line in iter(child.stdout.readline, ""):
            if not line.strip():
                break
            if line.startswith('{"name"'):
                row = json.loads(line)
                found[row["name"]] = row["result"], row["message"]
        names = sorted(path.name for path in folder.iterdir() if path.suffix != ".data")
        assert [*found] == names, f"{names[len(found)]} ended the process with status {child.wait()}"
        for name, (result, message) in found.items():
            assert result in (("loaded", "InputError") if some_load else ("InputError",)), (name, result, message)
            assert result == "loaded" or message.startswith(f"{folder / name}: "), message
            assert "\n" not in message
            assert len(message) < 600, message
        return found

    yield run
    child.kill()
    child.wait()


def small_model() -> onnx.ModelProto:
    """Two convolutions, a function, batch normalisation, an If and shape arithmetic, in 3 kB."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)), "w2": rng.standard_normal((4, 4, 1, 1)),
        "fc": rng.standard_normal((5, 4)), "scale": np.ones(4), "shift": np.zeros(4), "mean": np.zeros(4),
        "variance": np.ones(4),
    }  # fmt: skip
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers += [numpy_helper.from_array(np.array([i], np.int64), name) for i, name in ((0, "zero"), (-1, "rest"))]
    value = helper.make_tensor_value_info
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["a"], [name])], name, [], [value(name, TensorProto.FLOAT, ["n", 4, 8, 8])]
        )
        for name, kind in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["b"], "norm"),
        helper.make_node("act", ["b"], ["a"], "call", domain="local"),
        helper.make_node("ReduceMax", ["a"], ["m"], "max", keepdims=0),
        helper.make_node("Cast", ["m"], ["yes"], "cast", to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["d"], "if", **branches),
        helper.make_node("Conv", ["d", "w2"], ["e"], "conv2"),
        helper.make_node("GlobalAveragePool", ["e"], ["p"], "pool"),
        helper.make_node("Shape", ["p"], ["s"], "shape"),
        helper.make_node("Gather", ["s", "zero"], ["n"], "gather"),
        helper.make_node("Concat", ["n", "rest"], ["t"], "concat", axis=0),
        helper.make_node("Reshape", ["p", "t"], ["f"], "reshape"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["n", 5])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    body = helper.make_function("local", "act", ["i"], ["o"], [helper.make_node("Relu", ["i"], ["o"])], opsets)
    return helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=9)


# --- ONNX


def test_the_small_model_loads(check: Check, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(small_model().SerializeToString())
    assert check(tmp_path)["net.onnx"][0] == "loaded"


@pytest.mark.slow
def test_cut_off_at_every_byte(check: Check, tmp_path: Path) -> None:
    data = small_model().SerializeToString()
    for end in range(1, len(data)):
        (tmp_path / f"{end:06}.onnx").write_bytes(data[:end])
    assert any(result == "InputError" for result, _ in check(tmp_path).values())


@pytest.mark.slow
def test_flipped_bits(check: Check, tmp_path: Path) -> None:
    data, rng = small_model().SerializeToString(), random.Random(0)
    for i in range(1000):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        (tmp_path / f"{i:04}.onnx").write_bytes(changed)
    assert any(result == "InputError" for result, _ in check(tmp_path).values())


INTEGERS = [0, -1, 1, 3, 1 << 16, (1 << 31) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63)]
KINDS = ["If", "Loop", "Scan", "Concat", "Reshape", "Slice", "Pad", "Resize", "Split", "ConstantOfShape", "Expand",
         "Tile", "Range", "Nope", "ConvTranspose", "Dropout", "Constant", "GRU", "Einsum", "Identity"]  # fmt: skip
ATTRIBUTES = [
    "group",
    "axis",
    "pads",
    "strides",
    "dilations",
    "auto_pad",
    "mode",
    "kernel_shape",
    "perm",
    "to",
    "transB",
]


def mutate(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change one thing of a model that stays a protobuf."""
    graph = model.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    info = rng.choice([*graph.input, *graph.output]).type.tensor_type
    names = [*(name for each in graph.node for name in (*each.input, *each.output)), "", "nobody"]
    value: Any = rng.choice([rng.choice(INTEGERS), [rng.choice(INTEGERS) for _ in range(4)], "SAME_UPPER", "x", 1e38])
    changes: list[Callable[[], object]] = [
        lambda: tensor.dims.__setitem__(0, rng.choice(INTEGERS)),
        lambda: node.input.__setitem__(0, rng.choice(names)),
        lambda: node.output.__setitem__(0, rng.choice(names)),
        lambda: setattr(node, "op_type", rng.choice(KINDS)),
        lambda: setattr(node, "domain", rng.choice(["trtkp", "local", "com.microsoft"])),
        lambda: setattr(tensor, "data_type", rng.randrange(26)),
        lambda: setattr(tensor, "raw_data", tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]),
        lambda: graph.node.remove(node),
        lambda: graph.node.append(node),
        lambda: setattr(info, "elem_type", rng.randrange(22)),
        lambda: setattr(info.shape.dim[0], "dim_value", rng.choice(INTEGERS)),
        lambda: setattr(model.opset_import[0], "version", rng.choice([0, 1, 6, 9, 13, 21, 26, 99, -1, 1 << 40])),
        lambda: node.attribute.append(helper.make_attribute(rng.choice(ATTRIBUTES), value)),
        lambda: graph.node.append(helper.make_node(rng.choice(KINDS), rng.sample(names, 2), ["more"])),
    ]
    rng.choice(changes)()


@pytest.mark.slow
def test_changed_models(check: Check, tmp_path: Path) -> None:
    rng = random.Random(0)
    for i in range(400):
        model = small_model()
        for _ in range(rng.choice([1, 1, 2])):
            mutate(model, rng)
        (tmp_path / f"{i:04}.onnx").write_bytes(model.SerializeToString())
    assert any(result == "InputError" for result, _ in check(tmp_path).values())


def external(model: onnx.ModelProto, **entries: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[0] = "e"


def self_capture(model: onnx.ModelProto) -> None:
    """A branch of the If reads the output of the If."""
    model.graph.node[5].attribute[0].g.node[0].input[0] = "d"


def sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 50]))


def no_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].dims[0] = 1 << 36


HOSTILE: dict[str, Callable[[onnx.ModelProto], object]] = {
    "cycle": cyclic,
    "captured output": self_capture,
    "sparse": sparse,
    "huge without data": no_data,
    "duplicate output": lambda model: model.graph.node[3].output.__setitem__(0, "c"),
    "empty names": lambda model: model.graph.initializer[0].__setattr__("name", ""),
    "unknown opset": lambda model: model.opset_import[0].__setattr__("version", 1 << 30),
    "unknown operator": lambda model: model.graph.node[6].__setattr__("op_type", "Nope"),
    "beyond the file": lambda model: external(model, location="w.data", offset="1099511627776"),
    "negative offset": lambda model: external(model, location="w.data", offset="-8"),
    "negative length": lambda model: external(model, location="w.data", length="-1"),
    "huge offset": lambda model: external(model, location="w.data", offset=str(1 << 80)),
    "outside": lambda model: external(model, location="../w.data"),
    "a device": lambda model: external(model, location="zero.data"),
    "a pipe": lambda model: external(model, location="pipe.data"),
    "no location": external,
}


def test_hostile_onnx_files(check: Check, tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(bytes(100))
    (tmp_path / "zero.data").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.data")
    for name, change in HOSTILE.items():
        model = small_model()
        change(model)
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    check(tmp_path, some_load=False)


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def test_bytes_that_no_library_writes(check: Check, tmp_path: Path) -> None:
    """Names that are not UTF-8, subgraphs 100 levels deep, a length beyond the file, and a field without an end."""
    data = small_model().SerializeToString()
    graph = field(1, NodeProto(op_type="Relu", input=["v"], output=["o"]).SerializeToString())
    for _ in range(100):
        branch = field(1, b"then_branch") + field(6, graph) + varint(20 << 3) + varint(onnx.AttributeProto.GRAPH)
        graph = field(1, field(1, b"c") + field(2, b"o") + field(4, b"If") + field(5, branch))
    (tmp_path / "latin.onnx").write_bytes(data.replace(b"conv2", b"c\xf6nv2"))
    (tmp_path / "deep.onnx").write_bytes(b"\x08\x09" + field(7, graph) + field(8, b"\x10\x12"))
    (tmp_path / "long.onnx").write_bytes(b"\x08\x09\x3a" + varint(1 << 40) + data)
    (tmp_path / "endless.onnx").write_bytes(b"\x08" + b"\x80" * 1000)
    found = check(tmp_path, some_load=False)
    assert "nested too deep" in found["deep.onnx"][1]


# --- programs


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(make_net(), tmp_path_factory.mktemp("program") / "net.pt2", torch.zeros(2, 3, 8, 8))


def edit(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def edited(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return edited


def first_node(value: Any) -> Any:
    return value["graph_module"]["graph"]["nodes"][0]


def read_own_output(value: Any) -> None:
    """The first node reads what the last one computes."""
    nodes = value["graph_module"]["graph"]["nodes"]
    nodes[0]["inputs"][0]["arg"] = {"as_tensor": {"name": nodes[-1]["outputs"][0]["as_tensor"]["name"]}}


def sizes(key: str, number: int) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        meta = next(iter(value["config"].values()))["tensor_meta"]
        entry = meta[key][0] if isinstance(meta[key], list) else meta[key]
        entry["as_int"] = number

    return change


def test_hostile_programs(check: Check, program: Path, tmp_path: Path) -> None:
    edits: dict[str, tuple[str, Any]] = {
        "cycle": (MODEL, edit(read_own_output)),
        "unknown operator": (MODEL, edit(lambda v: first_node(v).__setitem__("target", "torch.ops.aten.nope.default"))),
        "no graph": (MODEL, edit(lambda v: v.pop("graph_module"))),
        "no nodes": (MODEL, edit(lambda v: v["graph_module"]["graph"].__setitem__("nodes", []))),
        "deep": (MODEL, b'{"a":' * 50_000),
        "deep lists": (MODEL, b"[" * 1_000_000),
        "long number": (MODEL, b'{"graph_module": ' + b"1" * 1_000_000 + b"}"),
        "empty member": (MODEL, b""),
        "no config": (WEIGHTS, b"{}"),
    }
    for key in ("sizes", "strides", "storage_offset"):
        for number in (-1, -(1 << 62), 1 << 31, 1 << 62, 1 << 70):
            edits[f"{key} {number}"] = (WEIGHTS, edit(sizes(key, number)))
    for name, (member, change) in edits.items():
        rewrite_zip(program, tmp_path / f"{name}.pt2", {member: change})
    for member in (MODEL, WEIGHTS, "data/weights/weight_0", "archive_format", "archive_version"):
        rewrite_zip(program, tmp_path / f"without {member.replace('/', ' ')}.pt2", {member: None})
    check(tmp_path, some_load=False)


def archives(program: Path) -> Iterator[tuple[str, Callable[[zipfile.ZipFile], object]]]:
    """Names and what is added to a copy of the program's archive."""
    yield "bomb", lambda new: new.writestr("net/data/bomb", bytes(1 << 26), zipfile.ZIP_DEFLATED)
    yield "twice", lambda new: new.writestr(new.infolist()[0].filename, b"other")
    yield "absolute", lambda new: new.writestr("/etc/passwd", b"")
    yield "outside", lambda new: new.writestr("net/../../x", b"")

    def many(new: zipfile.ZipFile) -> None:
        for i in range(5_000):
            new.writestr(f"net/{i}/../x", b"")

    yield "many", many


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives(check: Check, program: Path, tmp_path: Path) -> None:
    for name, change in archives(program):
        path = rewrite_zip(program, tmp_path / f"{name}.pt2", {})
        with zipfile.ZipFile(path, "a") as archive:
            change(archive)
    data = bytearray(program.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 20 : central + 28] = b"\xff" * 8  # sizes of the last member, as zip64 would have them elsewhere
    (tmp_path / "zip64.pt2").write_bytes(data)
    check(tmp_path, some_load=False)


def test_a_link_as_a_member_is_only_bytes(check: Check, program: Path, tmp_path: Path) -> None:
    path = rewrite_zip(program, tmp_path / "net.pt2", {})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo(f"{archive.namelist()[0].split('/')[0]}/data/weights/weight_9")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert check(tmp_path)["net.pt2"][0] == "loaded"


# --- state dicts


def test_hostile_state_dicts(check: Check, tmp_path: Path) -> None:
    def safetensors(header: object, rest: bytes = b"", length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return (len(text) if length is None else length).to_bytes(8, "little") + text + rest

    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    files = {
        "outside.safetensors": safetensors({"a": {**tensor, "data_offsets": [0, 1 << 40]}}, bytes(8)),
        "backwards.safetensors": safetensors({"a": {**tensor, "data_offsets": [8, 0]}}, bytes(8)),
        "overlap.safetensors": safetensors({"a": tensor, "b": tensor}, bytes(8)),
        "shape.safetensors": safetensors({"a": {**tensor, "shape": [1 << 62, 8]}}, bytes(8)),
        "negative.safetensors": safetensors({"a": {**tensor, "shape": [-2]}}, bytes(8)),
        "dtype.safetensors": safetensors({"a": {**tensor, "dtype": "F99"}}, bytes(8)),
        "deep.safetensors": safetensors(b'{"a":' * 100_000),
        "length.safetensors": safetensors({"a": tensor}, bytes(8), length=(1 << 31) - 1),
        "legacy.pt": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + bytes(64),
        "call.pt": b"\x80\x02cos\nsystem\n(S'true'\ntR.",
        "memo.pt": b"\x80\x02r\xff\xff\xff\x7f.",
        "string.pt": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x",
        "nested.pt": b"\x80\x02" + b"(" * 300_000 + b".",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    check(tmp_path, some_load=False)
