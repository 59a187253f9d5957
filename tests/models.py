"""Small trained-looking models and data as files, for the tests of whole builds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from examples.nets import export, settle_batch_norm

__all__ = ["as_onnx", "save_program", "settled", "work_in_copy", "write_classifier", "write_stripes"]


def settled(net: nn.Module, shape: Sequence[int]) -> nn.Module:
    """The net in evaluation mode with the batch-normalisation statistics of random data."""
    return settle_batch_norm(net, shape)


def save_program(
    net: nn.Module,
    path: Path,
    shape: Sequence[int],
    *,
    batch: tuple[int, int] = (1, 64),
    size_step: int | None = None,
) -> Path:
    """``torch.export.save`` of a net that takes one input ``[N, *shape]``."""
    torch.export.save(export(settled(net, shape), shape, batch, size_step), path)
    return path


def as_onnx(program: Path) -> Path:
    """The program as an ONNX file beside it: a build from that skips PyTorch's exporter."""
    from trtkp.model import load_model

    path = program.with_suffix(".onnx")
    ir.save(load_model(program).graph(), path)
    return path


def write_classifier(
    path: Path, channels: Sequence[int] = (3, 16, 32, 32), *, seed: int = 0, classes: int = 5, batch: int | str = "N"
) -> Path:
    """An ONNX file: 3x3 convolutions ``w0``, ``w1``, ... with ReLU, mean and Gemm: ``image [N, 3, 8, 8]`` to ``y``."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "image"
    for i, (before, after) in enumerate(pairwise(channels)):
        weight = rng.standard_normal((after, before, 3, 3)) * np.sqrt(2 / (9 * before))
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        value = f"r{i}"
    matrix = rng.standard_normal((channels[-1], classes)).astype(np.float32)
    weights.append(numpy_helper.from_array(matrix, "fc"))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["mean"], "pool"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "fc"], ["y"], "gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [batch, channels[0], 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, classes])],
        weights,
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def write_stripes(path: Path) -> None:
    """An ``.npz`` of 160 images [1, 8, 8], a quarter to test with: bright rows, bright columns, or neither."""
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 3
    images = rng.normal(0, 0.3, (160, 1, 8, 8)).astype(np.float32)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    np.savez(path, x=images[:120], y=labels[:120], x_test=images[120:], y_test=labels[120:])


def work_in_copy(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a folder, which is the current one from then on."""
    copy = shutil.copytree(folder, tmp_path / "work")
    monkeypatch.chdir(copy)
    return copy
