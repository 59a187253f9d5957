"""The statistics of the batch, against PyTorch in training mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from tests.models import save_program
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.graph.passes.batch_statistics import use_batch_statistics
from trtkp.model import load_model


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)]
    model = nn.Sequential(*layers)
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model


def test_as_in_training(tmp_path: Path) -> None:
    model = net()
    graph = load_model(save_program(model, tmp_path / "net.pt2", (3, 6, 5))).graph()
    assert use_batch_statistics(graph) == 2
    assert not {node.op_type for node in graph.graph} & {"BatchNormalization"}
    x = np.random.default_rng(0).standard_normal((7, 3, 6, 5)).astype(np.float32) * 3 + 1
    with OrtRunner(ir.to_proto(graph)) as runner:
        (found,) = runner.run({runner.inputs[0].name: x}).values()
    with torch.no_grad():
        expected = model.train()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_other_normalisations_stay(new_graph: object) -> None:
    graph = new_graph()  # type: ignore[operator]
    x = graph.input("x", ("n", 3))
    one = [graph.constant(name, np.ones(3, np.float32)) for name in ("g", "b", "m", "v")]
    model = graph.model(graph.op("BatchNormalization", x, *one, output="y"))
    assert use_batch_statistics(model) == 0
    assert [node.op_type for node in model.graph] == ["BatchNormalization"]
