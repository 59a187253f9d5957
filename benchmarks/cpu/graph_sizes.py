"""Time and memory of a build against the size of the graph: many nodes, many weights, deep nesting, large data files.

    python -m benchmarks.cpu.graph_sizes --json benchmarks/results/graph_sizes.json

Every build runs in a process of its own, with one thread, without measuring, for ONNX Runtime. ``--code DIR`` builds
with another checkout, and ``--label`` names its rows, so that two states can be compared. Rows that the result file
has already are not measured again. The largest model has 2.4 GiB of weights: it needs 8 GB of memory and of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import NodeProto, TensorProto, helper, numpy_helper

from benchmarks.provenance import provenance
from trtkp.graph.save import save_graph

TIME_LIMIT_S = 120
_CHILD = """
import json, sys, time, trtkp
start = time.perf_counter()
options = trtkp.BuildOptions(backend="onnxruntime", measure=False, timing_cache=False, threads=1)
row = {}
try:
    bundle = trtkp.build(sys.argv[1], sys.argv[2], method="kep", share="per-layer", options=options)
    row["phases"] = bundle.manifest.seconds
except trtkp.TrtkpError as error:
    row["refused"] = str(error).replace(sys.argv[1], "model.onnx")
row["seconds"] = round(time.perf_counter() - start, 2)
status = open("/proc/self/status").read().split("VmHWM:")[1]
row["peak_mib"] = int(status.split()[0]) // 1024
print(json.dumps(row))
"""


def model(
    nodes: Sequence[NodeProto],
    weights: dict[str, np.ndarray],
    last: str,
    *,
    channels: int = 8,
    size: int = 4,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model that takes ``x`` [1, channels, size, size], and more inputs and outputs of that shape."""
    shape = [1, channels, size, size]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", *inputs)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("abcd")) for name in (last, *outputs)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers that keep activations in range."""
    scale = 0.5 / np.sqrt(np.prod(shape[1:]))
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def _first() -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    return [helper.make_node("Conv", ["x", "w"], ["v"], "conv", pads=[1] * 4)], {"w": weight(8, 8, 3, 3)}


def convolutions(count: int, residual: bool = False, normalised: bool = False) -> onnx.ModelProto:
    """A chain of convolutions, each with ReLU, and with a residual Add or batch normalisation."""
    nodes, weights, value = [], {}, "x"
    for i in range(count):
        last = f"c{i}"
        weights[f"w{i}"] = weight(8, 8, 3, 3, seed=i)
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [last], f"conv{i}", pads=[1] * 4))
        if normalised:
            statistics = [f"{name}{i}" for name in ("scale", "shift", "mean", "variance")]
            weights |= {name: np.abs(weight(8, 1, seed=i).ravel()) + 0.5 for name in statistics}
            nodes.append(helper.make_node("BatchNormalization", [last, *statistics], [f"b{i}"], f"norm{i}"))
            last = f"b{i}"
        if residual:
            nodes.append(helper.make_node("Add", [last, value], [f"a{i}"], f"add{i}"))
            last = f"a{i}"
        nodes.append(helper.make_node("Relu", [last], [f"r{i}"], f"relu{i}"))
        value = f"r{i}"
    return model(nodes, weights, value)


def residual(count: int) -> onnx.ModelProto:
    """A chain of convolutions with a residual Add around each."""
    return convolutions(count, residual=True)


def batch_norms(count: int) -> onnx.ModelProto:
    """A chain of convolutions with a batch normalisation after each."""
    return convolutions(count, normalised=True)


def elementwise(count: int, name: Callable[[int], str] = "relu{}".format) -> onnx.ModelProto:
    """One convolution and a chain of ReLUs."""
    (nodes, weights), value = _first(), "v"
    for i in range(count):
        nodes.append(helper.make_node("Relu", [value], [f"v{i}"], name(i)))
        value = f"v{i}"
    return model(nodes, weights, value)


def same_names(count: int) -> onnx.ModelProto:
    """`elementwise`, but all nodes have one name."""
    return elementwise(count, lambda _: "same")


def long_names(count: int) -> onnx.ModelProto:
    """`elementwise` of 50 nodes with names of this many characters."""
    return elementwise(50, lambda i: "n" * count + str(i))


def additions(count: int) -> onnx.ModelProto:
    """One convolution and a chain of additions of initialisers, which all fold into its bias."""
    (nodes, weights), value = _first(), "v"
    for i in range(count):
        weights[f"k{i}"] = np.full((1, 8, 1, 1), 1e-3, np.float32)
        nodes.append(helper.make_node("Add", [value, f"k{i}"], [f"v{i}"], f"add{i}"))
        value = f"v{i}"
    return model(nodes, weights, value)


def inputs_and_outputs(count: int) -> onnx.ModelProto:
    """One convolution whose output is added to each of many inputs; every sum is an output."""
    nodes, weights = _first()
    nodes += [helper.make_node("Add", ["v", f"x{i}"], [f"y{i}"], f"add{i}") for i in range(count)]
    outputs = [f"y{i}" for i in range(count)]
    return model(nodes, weights, outputs[0], inputs=[f"x{i}" for i in range(count)], outputs=outputs[1:])


def wide_concat(count: int) -> onnx.ModelProto:
    """A Concat of many values, read by a convolution."""
    nodes, weights = _first()
    nodes += [helper.make_node("Relu", ["v"], [f"v{i}"], f"relu{i}") for i in range(count)]
    nodes.append(helper.make_node("Concat", [f"v{i}" for i in range(count)], ["all"], "concat", axis=1))
    nodes.append(helper.make_node("Conv", ["all", "last"], ["y"], "last"))
    return model(nodes, weights | {"last": weight(8, 8 * count, 1, 1)}, "y")


def nested(count: int) -> onnx.ModelProto:
    """If in If, this many levels deep."""
    body = [helper.make_node("Relu", ["v"], ["t"])]
    for i in range(count):
        output = [helper.make_tensor_value_info(body[0].output[0], TensorProto.FLOAT, list("abcd"))]
        other = helper.make_graph(
            [helper.make_node("Neg", ["v"], [f"e{i}"])],
            f"else{i}",
            [],
            [helper.make_tensor_value_info(f"e{i}", TensorProto.FLOAT, list("abcd"))],
        )
        then = helper.make_graph(body, f"then{i}", [], output)
        last = "y" if i == count - 1 else f"o{i}"
        body = [helper.make_node("If", ["c"], [last], f"if{i}", then_branch=then, else_branch=other)]
    nodes, weights = _first()
    nodes.append(helper.make_node("ReduceMax", ["v"], ["m"], keepdims=0))
    nodes.append(helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL))
    return model([*nodes, *body], weights, "y")


def doubling(count: int) -> onnx.ModelProto:
    """Functions that call the next one twice: 2^count nodes once they are inlined."""
    functions, opsets = [], [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    for i in range(count):
        kind, domain = (f"f{i - 1}", "local") if i else ("Relu", "")
        body = [helper.make_node(kind, [a], [b], domain=domain) for a, b in (("a", "t"), ("t", "b"))]
        functions.append(helper.make_function("local", f"f{i}", ["a"], ["b"], body, opsets))
    nodes, weights = _first()
    nodes.append(helper.make_node(f"f{count - 1}", ["v"], ["y"], "call", domain="local"))
    return model(nodes, weights, "y", functions=functions)


def large(count: int, channels: int = 2048) -> ir.Model:
    """A chain of convolutions with 36 channels^2 bytes of weights each, 144 MiB; all have the same weights."""
    nodes, value = [], "x"
    for i in range(count):
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        value = f"r{i}"
    made = ir.from_proto(model(nodes, {}, value, channels=channels, size=2))
    block = weight(channels, channels, 3, 3)
    for i, node in enumerate(node for node in made.graph if node.op_type == "Conv"):
        name = f"w{i}"
        stored = ir.val(name, ir.DataType.FLOAT, block.shape, const_value=ir.tensor(block, name=name))
        made.graph.register_initializer(stored)
        node.replace_input_with(1, stored)
    return made


CASES: tuple[tuple[Callable[[int], onnx.ModelProto | ir.Model], tuple[int, ...]], ...] = (
    (doubling, (8, 40)),
    (elementwise, (2000, 8000)),
    (same_names, (2000, 8000)),
    (additions, (2500, 10_000)),
    (convolutions, (1250, 2500, 5000)),
    (residual, (625, 1250)),
    (batch_norms, (1500, 3000)),
    (wide_concat, (1250, 5000)),
    (inputs_and_outputs, (1000, 2000)),
    (long_names, (100_000,)),
    (nested, (28,)),
    (elementwise, (50_000,)),
    (large, (4, 16)),
)


def main() -> None:
    """Measure what the result file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--code", type=Path, default=Path(__file__).parents[2], help="checkout to build with")
    parser.add_argument("--label", default="now")
    arguments = parser.parse_args()
    result: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    part = result.setdefault(arguments.label, {"provenance": provenance(), "rows": []})
    part["provenance"]["commit"] = _commit(arguments.code)
    done = {(row["graph"], row["size"]) for row in part["rows"]}
    for make, size in ((make, size) for make, sizes in CASES for size in sizes):
        if (make.__name__, size) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            made = make(size)
            save_graph(made if isinstance(made, ir.Model) else ir.from_proto(made), path)
            del made
            row = _built(path, arguments.code)
        part["rows"].append({"graph": make.__name__, "size": size, **row})
        print(part["rows"][-1], flush=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _commit(code: Path) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=code, capture_output=True, text=True, check=True).stdout.strip()


def _built(path: Path, code: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", _CHILD, str(path), str(path.with_name("bundle"))]
    try:
        run = subprocess.run(
            command, env=environment, cwd=code, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"unfinished_after": TIME_LIMIT_S}
    if run.returncode:
        return {"failed": run.stderr[-200:]}
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
