"""A small net with data that it learns, as files in a folder to work in."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trtkp.pruning.run.subject
from examples.nets import export
from tests.models import work_in_copy, write_stripes
from trtkp.model import SourceModel
from trtkp.model.layers import named_graph


def small_net() -> nn.Sequential:
    """Three convolutions, with all that training switches."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.pt2`` and ``data.npz``, three classes of stripes."""
    folder = tmp_path_factory.mktemp("prune")
    torch.export.save(export(small_net(), (1, 8, 8)), folder / "net.pt2")
    write_stripes(folder / "data.npz")
    return folder


def rows_of(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="") as log:
        return list(csv.DictReader(log))


_GRAPHS: dict[str, Any] = {}


def graph_once(source: SourceModel) -> Any:
    """The export to ONNX takes seconds, and is the same for every test here."""
    if source.format == "onnx":
        return named_graph(source)
    if source.sha256 not in _GRAPHS:
        _GRAPHS[source.sha256] = named_graph(source)
    return _GRAPHS[source.sha256]


@pytest.fixture
def work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy; it is the current folder."""
    copy = work_in_copy(source, tmp_path, monkeypatch)
    monkeypatch.setattr(trtkp.pruning.run.subject, "named_graph", graph_once)
    return copy
