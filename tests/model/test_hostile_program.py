"""Every way in which ``torch.export.load`` runs code from a file: shown where it can be, and refused by trtkp."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.model.conftest import Edit, Touch, rewrite_zip
from trtkp.errors import InputError
from trtkp.model import load_model
from trtkp.pruning.methods.dppnet_module import DynamicPatternConv2d, pack

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def edit_json(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return edit


def plainly(path: Path, run: bool = False) -> None:
    """What a user without trtkp does; whatever it raises does not matter."""
    with contextlib.suppress(Exception):
        program = torch.export.load(path)
        if run:
            program.module()(torch.zeros(2, 3, 8, 8))


def refused(path: Path, marker: Path, match: str) -> None:
    marker.unlink(missing_ok=True)
    with pytest.raises(InputError, match=match) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_sample_inputs(program: Path, tmp_path: Path, marker: Path) -> None:
    path = rewrite_zip(program, tmp_path / "bad.pt2", {SAMPLES: pickled(((Touch(marker),), {}))})
    plainly(path)
    assert marker.exists()
    refused(path, marker, "sample_inputs/model.pt is not plain tensors")


def test_pickled_weight(program: Path, tmp_path: Path, marker: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["conv.weight"]["use_pickle"] = True

    edits: dict[str, Edit] = {WEIGHTS: edit_json(change), "data/weights/weight_0": pickled(Touch(marker))}
    path = rewrite_zip(program, tmp_path / "bad.pt2", edits)
    plainly(path)
    assert marker.exists()
    refused(path, marker, "conv.weight is a pickled object")


@pytest.mark.parametrize("member", ["tensor_0", "opaque_obj_0"])
def test_pickled_constant(program: Path, tmp_path: Path, marker: Path, member: str) -> None:
    def change(config: Any) -> None:
        meta = {"path_name": member, "is_param": False, "use_pickle": True, "tensor_meta": None}
        config["config"]["lifted"] = meta

    data = pickled(Touch(marker)) if member == "tensor_0" else pickle.dumps(Touch(marker))
    added = {f"data/constants/{member}": data}
    path = rewrite_zip(program, tmp_path / "bad.pt2", {CONSTANTS: edit_json(change)}, added)
    plainly(path)
    assert marker.exists()
    refused(path, marker, "pickled object|custom object")


@pytest.mark.parametrize("folder", ["weights", "constants"])
def test_old_members_for_weights_and_constants(program: Path, tmp_path: Path, marker: Path, folder: str) -> None:
    added = {f"data/{folder}/model.pt": pickled(Touch(marker))}
    path = rewrite_zip(program, tmp_path / "bad.pt2", {}, added)
    plainly(path)
    assert marker.exists()
    refused(path, marker, "old layout")


@pytest.mark.parametrize("name", ["data/constants/custom_obj_0", "data/aotinductor/model/code.so", "extra/lib.so"])
def test_compiled_code_and_custom_objects(program: Path, tmp_path: Path, marker: Path, name: str) -> None:
    path = rewrite_zip(program, tmp_path / "bad.pt2", {}, {name: b"\x7fELF"})
    refused(path, marker, "compiled code|custom object")


def test_second_program(program: Path, tmp_path: Path, marker: Path) -> None:
    path = rewrite_zip(program, tmp_path / "bad.pt2", {}, {"models/other.json": b"{}"})
    refused(path, marker, "second program")


def test_size_expression(program: Path, tmp_path: Path, marker: Path) -> None:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch() or 1"

    def change(model: Any) -> None:
        values = model["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0]["as_expr"]["expr_str"] = code

    path = rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit_json(change)})
    plainly(path)
    assert marker.exists()
    refused(path, marker, "refused")


def test_guards_are_dropped(program: Path, tmp_path: Path, marker: Path) -> None:
    def change(model: Any) -> None:
        model["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).touch() is None"]

    path = rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit_json(change)})
    plainly(path, run=True)
    assert marker.exists()
    marker.unlink()
    model = load_model(path)
    model.module()(torch.zeros(2, 3, 8, 8))
    assert not marker.exists()


def test_names_in_generated_code(program: Path, tmp_path: Path, marker: Path) -> None:
    name = f"x=open({str(marker)!r},'w')"

    def edit(data: bytes) -> bytes:
        text = data.decode().replace('"as_tensor": {"name": "x"}', json.dumps({"as_tensor": {"name": name}})[1:-1])
        return text.replace('"x": {"dtype"', f'{json.dumps(name)}: {{"dtype"').encode()

    path = rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit})
    plainly(path)
    assert marker.exists()
    refused(path, marker, "is not a name")


def test_parameter_names(program: Path, tmp_path: Path, marker: Path) -> None:
    evil = "conv.weight');open('x"
    edits: dict[str, Edit] = {
        MODEL: lambda data: data.replace(b'"conv.weight"', json.dumps(evil).encode()),
        WEIGHTS: lambda data: data.replace(b'"conv.weight"', json.dumps(evil).encode()),
    }
    refused(rewrite_zip(program, tmp_path / "bad.pt2", edits), marker, "parameter name")


@pytest.mark.parametrize("target", ["torch.serialization.os.system", "_operator.call", "math.__loader__.load_module"])
def test_operator_by_attribute_path(program: Path, tmp_path: Path, marker: Path, target: str) -> None:
    def change(model: Any) -> None:
        node = model["graph_module"]["graph"]["nodes"][-1]
        node["target"] = target
        argument = {"name": "command", "arg": {"as_string": f"touch {marker}"}, "kind": 1}
        node["inputs"] = [argument]

    path = rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit_json(change)})
    refused(path, marker, "not one of PyTorch's tensor operators")


@pytest.mark.parametrize("operator", ["from_file", "save", "set_.source_Storage", "__class__.mro"])
def test_operator_that_is_not_for_networks(program: Path, tmp_path: Path, marker: Path, operator: str) -> None:
    torch.ops.aten.from_file(str(marker), True, 4)
    assert marker.exists()
    target = f"torch.ops.aten.{operator}" + ("" if "." in operator else ".default")

    def change(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = target

    path = rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit_json(change)})
    refused(path, marker, "not one of PyTorch's tensor operators")


def test_of_our_operators_one_is_taken(program: Path, tmp_path: Path, marker: Path) -> None:
    for operator in ("conv.default", "dynamic_pattern_conv.out", "dynamic_pattern_conv"):

        def change(model: Any, operator: str = operator) -> None:
            model["graph_module"]["graph"]["nodes"][0]["target"] = f"torch.ops.trtkp.{operator}"

        path = rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit_json(change)})
        refused(path, marker, "not one of PyTorch's tensor operators")


@pytest.mark.parametrize("change", ["taps", "stride", "filters"])
def test_a_pattern_convolution_that_does_not_fit(tmp_path: Path, change: str) -> None:
    layer = DynamicPatternConv2d(nn.Conv2d(3, 4, 3, padding=1))
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(4 * 64, 2))
    pack(net)
    if change == "taps":
        net[0].taps += 7
    batch = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=batch), tmp_path / "net.pt2")

    def edit(model: Any) -> None:
        node = next(n for n in model["graph_module"]["graph"]["nodes"] if "dynamic_pattern" in n["target"])
        given = {item["name"]: item["arg"] for item in node["inputs"]}
        if change == "stride":
            given["strides"]["as_ints"] = [0, 0]
        if change == "filters":
            given["weight_shape"]["as_ints"] = [1 << 40, 3, 3, 3]

    path = rewrite_zip(tmp_path / "net.pt2", tmp_path / "bad.pt2", {MODEL: edit_json(edit)})

    def run() -> None:
        model = load_model(path)
        model.run({model.inputs[0].name: np.zeros((1, 3, 8, 8), np.float32)})

    with pytest.raises(InputError, match=r"bad\.pt2"):
        run()


def test_strings_that_are_no_options(program: Path, tmp_path: Path, marker: Path) -> None:
    def change(model: Any) -> None:
        node = model["graph_module"]["graph"]["nodes"][0]
        node["inputs"].append({"name": "padding", "arg": {"as_string": "/etc/passwd"}, "kind": 1})

    refused(rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit_json(change)}), marker, "no option")


def test_enum_in_tree_specification(
    program: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    context = json.dumps([{"__enum__": True, "fqn": "evil_module:Colour", "name": "RED"}])

    def change(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        protocol, tree = json.loads(signature["in_spec"])
        tree["children_spec"][1]["context"] = context
        signature["in_spec"] = json.dumps([protocol, tree])

    path = rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit_json(change)})
    plainly(path)
    assert marker.exists()
    sys.modules.pop("evil_module", None)
    refused(path, marker, "is not a name")


def test_old_layout(program: Path, tmp_path: Path, marker: Path) -> None:
    """The layout of PyTorch up to 2.6: everything in pickles beside one JSON."""
    with zipfile.ZipFile(program) as archive:
        model = archive.read(f"{archive.namelist()[0].split('/')[0]}/{MODEL}")
    path = tmp_path / "bad.pt2"
    with zipfile.ZipFile(path, "w") as old:
        old.writestr("version", "8.1")
        old.writestr("serialized_exported_program.json", model)
        old.writestr("serialized_state_dict.pt", pickled({}))
        old.writestr("serialized_constants.pt", pickled({}))
        old.writestr("serialized_example_inputs.pt", pickled(((Touch(marker),), {})))
    plainly(path)
    assert marker.exists()
    refused(path, marker, "example_inputs.pt is not plain tensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sizes", [{"as_int": 1 << 40}, {"as_int": 1 << 40}, {"as_int": 3}, {"as_int": 3}]),
        ("strides", [{"as_int": 0}, {"as_int": 0}, {"as_int": 0}, {"as_int": 99999}]),
        ("storage_offset", {"as_int": 99999}),
        ("storage_offset", {"as_int": -1}),
        ("dtype", 77),
        ("sizes", [{"as_expr": {"expr_str": "s0", "hint": None}}]),
    ],
)
def test_weights_beyond_their_bytes(program: Path, tmp_path: Path, marker: Path, key: str, value: Any) -> None:
    def change(config: Any) -> None:
        config["config"]["conv.weight"]["tensor_meta"][key] = value

    refused(rewrite_zip(program, tmp_path / "bad.pt2", {WEIGHTS: edit_json(change)}), marker, "refused")


def test_symbol_number_that_would_loop_for_ever(program: Path, tmp_path: Path, marker: Path) -> None:
    def change(model: Any) -> None:
        model["range_constraints"]["u99999999999999"] = {"min_val": 0, "max_val": 1}

    refused(rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: edit_json(change)}), marker, "size symbol")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1, "a": 2}', "1" * 10_000, "[]", "null", '{"graph_module": 3}'])
def test_json_of_another_kind(program: Path, tmp_path: Path, marker: Path, text: str) -> None:
    refused(rewrite_zip(program, tmp_path / "bad.pt2", {MODEL: text.encode()}), marker, "refused")
