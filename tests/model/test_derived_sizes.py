"""Exports whose height and width are multiples of a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.nets import export
from trtkp.model import load_model
from trtkp.model.expressions import is_size
from trtkp.shapes import Dim


@pytest.mark.parametrize("text", ["s0", "u3", "8*s24", "2*s0 + 1", "s7 - 3"])
def test_sizes(text: str) -> None:
    assert is_size(text)


@pytest.mark.parametrize(
    "text", ["", "8", "s0*8", "8*s24*2", "u3 + 1", "8*s99999", "s0**9", "s0; x", "9999999999*s0", 8]
)
def test_no_sizes(text: object) -> None:
    assert not is_size(text)


def test_multiples_of_a_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(4), nn.Upsample(scale_factor=4.0)).eval()
    torch.export.save(export(net, (3, 16, 16), size_step=4), tmp_path / "net.pt2")
    model = load_model(tmp_path / "net.pt2")
    batch, channels, height, width = model.inputs[0].shape
    assert channels == 3
    assert isinstance(batch, Dim)
    assert isinstance(height, Dim)
    assert isinstance(width, Dim)
    assert [(dim.minimum, dim.maximum) for dim in (batch, height, width)] == [(1, 64), (8, 2048), (8, 2048)]
    assert model.graph().graph.inputs[0].shape is not None
    image = np.random.default_rng(0).standard_normal((2, 3, 8, 20)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(
        next(iter(model.run({model.inputs[0].name: image}).values())), expected, rtol=1e-5, atol=1e-6
    )
