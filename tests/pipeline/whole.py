"""Building, and what every bundle promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.numpy import load_file

import trtkp
from trtkp.bundle import Bundle
from trtkp.machine.packages import importable
from trtkp.pipeline.options import BuildOptions
from trtkp.verification.bundle import compare_graphs, dense_graph

needs_rtx = pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")


RTX = {"backend": "tensorrt-rtx", "targets": ("sm86",)}


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


def assert_verified(bundle: Bundle) -> None:
    report = trtkp.verify(bundle)
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
