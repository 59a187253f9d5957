"""PPT-KP's pruning points on the command line: what is listed of them, and what ``--point`` then leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from examples.nets import export
from tests.models import as_onnx, work_in_copy
from trtkp.bundle.pruned import load_pruned

from .conftest import Trtkp

#: Parameters and MACs of the net below, by hand: 3x3 of 32 filters on 8 x 8, Linear, biases.
DENSE = (288 + 9216 + 1024 + 9216 + 3 * 32 + 3, 64 * (288 + 9216 + 1024 + 9216) + 3 * 32)


def heaped(conv: nn.Conv2d, heaps: tuple[float, ...], rng: np.random.Generator) -> None:
    """Kernels whose L1 norms lie close around the given ones, as many around each."""
    rows, columns = conv.kernel_size
    shape = (conv.out_channels, conv.in_channels)
    norms = rng.permutation(np.resize(heaps, shape[0] * shape[1])).reshape(shape) + rng.normal(0, 0.08, shape)
    signs = rng.choice([-1, 1], (*shape, rows, columns))
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(norms[:, :, None, None] * signs / (rows * columns)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.pt2``, ``net.onnx`` and ``data.npz``.

    Norms of the stem and of 3x3 kernels make three heaps, so two margins; those of 1x1 kernels two, so one.
    """
    folder = tmp_path_factory.mktemp("pptkp")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    convolutions = (nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.Conv2d(32, 32, 3, padding=1, bias=False),
                    nn.Conv2d(32, 32, 1, bias=False), nn.Conv2d(32, 32, 3, padding=1, bias=False))  # fmt: skip
    for conv in convolutions:
        heaped(conv, (1.0, 2.0) if conv.kernel_size == (1, 1) else (1.0, 2.0, 3.0), rng)
    parts = [part for conv in convolutions for part in (conv, nn.ReLU())]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)).eval()
    torch.export.save(export(net, (1, 8, 8)), folder / "net.pt2")
    as_onnx(folder / "net.pt2")
    x = rng.normal(size=(60, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.arange(60) % 3)
    return folder


@pytest.fixture
def work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy; it is the current folder."""
    return work_in_copy(source, tmp_path, monkeypatch)


def prune(trtkp: Trtkp, *options: str) -> Any:
    done = trtkp("prune", *options, "-m", "pptkp", "-o", "p", "--json")
    assert done.status == 0, done.err
    return done.document


def left(told: Any) -> tuple[list[int], int, int]:
    """Kernels, parameters and MACs, from what lies in the pruned model's files."""
    kept = [int(index.mask().any(axis=(2, 3)).sum()) for index in load_pruned("p").index_sets.values()]
    return [sum(kept), 32 * 32 * len(kept)], told["totals"]["retained_params"], told["totals"]["retained_macs"]


def test_every_point_is_listed_with_what_it_leaves(trtkp: Trtkp, work: Path) -> None:
    told = prune(trtkp, "net.onnx", "--ratio", "0.5", "--skip", "4")
    assert (told["totals"]["dense_params"], told["totals"]["dense_macs"]) == DENSE
    points = told["report"]["points"]
    assert [point["point"] for point in points] == [1, 2]
    for point, share in zip(points, (1 / 3, 2 / 3), strict=True):
        (found,) = point["norms"].values()
        assert point["point"] + 0.3 < found["threshold"] < point["point"] + 0.7
        assert found["ratio"] == pytest.approx(share, abs=0.01)
        assert found["depth"] == 1
        removed = point["kernels"][1] - point["kernels"][0]
        assert (point["params"], point["macs"]) == (DENSE[0] - 9 * removed, DENSE[1] - 9 * 64 * removed)
        at = prune(trtkp, "net.onnx", "--point", str(point["point"]), "--skip", "4")
        assert left(at) == (point["kernels"], point["params"], point["macs"])
        assert at["report"]["points"] == points


@pytest.mark.parametrize("options", ["--equalise", "--filter-group 2 --round-to 4", "--nm 2:4"])
def test_what_is_listed_follows_the_other_settings(trtkp: Trtkp, work: Path, options: str) -> None:
    told = prune(trtkp, "net.onnx", "--ratio", "0.5", "--layers", "2", *options.split())
    points = told["report"]["points"]
    assert points
    for point in points:
        at = prune(trtkp, "net.onnx", "--point", str(point["point"]), "--layers", "2", *options.split())
        assert left(at)[1:] == (point["params"], point["macs"])


def test_a_point_counts_in_each_distribution(trtkp: Trtkp, work: Path) -> None:
    """1x1 kernels have one point, the others two: only the first can be taken."""
    one, two = prune(trtkp, "net.onnx", "--ratio", "0.5")["report"]["points"]
    assert one["norms"].keys() == two["norms"].keys() == {"3x3", "1x1"}
    assert one["norms"]["1x1"]["ratio"] == pytest.approx(1 / 2, abs=0.01)
    assert one["norms"]["3x3"]["ratio"] == pytest.approx(1 / 3, abs=0.01)
    assert two["norms"]["1x1"] is two["kernels"] is two["params"] is two["macs"] is None
    assert left(prune(trtkp, "net.onnx", "--point", "1")) == (one["kernels"], one["params"], one["macs"])
    refused = trtkp("prune", "net.onnx", "-m", "pptkp", "--point", "2", "-o", "q")
    assert refused.status == 2
    assert "--point 2: the norms of 1x1 kernels have 1 pruning point;" in refused.message
    assert not Path("q").exists()


def test_the_points_are_printed(trtkp: Trtkp, work: Path) -> None:
    one, two = prune(trtkp, "net.onnx", "--ratio", "0.5")["report"]["points"]
    printed = trtkp("prune", "net.onnx", "-m", "pptkp", "--ratio", "0.5", "-o", "p").out.splitlines()
    start = next(i for i, line in enumerate(printed) if "--point" in line)
    rows = [" ".join(line.split()) for line in printed[start + 1 :]]
    large, small = (one["norms"][size] for size in ("3x3", "1x1"))
    kernels, params = one["kernels"][0], one["params"]
    assert rows[0] == (
        f"1 3x3 {large['threshold']:.4g} {large['ratio']:.1%} 100% "
        f"{kernels:,} ({kernels / 3072 - 1:+.1%}) {params:,} ({params / DENSE[0] - 1:+.1%}) "
        f"{one['macs']:,} ({one['macs'] / DENSE[1] - 1:+.1%})"
    )
    assert rows[1] == f"1x1 {small['threshold']:.4g} {small['ratio']:.1%} 100%"
    assert rows[2] == f"2 3x3 {two['norms']['3x3']['threshold']:.4g} 66.7% 100%"
    assert rows[3:] == ["1x1 no such point"]
    # means over whole columns are alike, with no margin; other methods say nothing of points
    text = trtkp("prune", "net.onnx", "-m", "pptkp", "--filter-group", "32", "-o", "p").out
    assert "no pruning points: the norms have no margins" in text
    assert "point" not in trtkp("prune", "net.onnx", "-m", "l1", "-o", "p").out


def test_points_of_trained_weights(trtkp: Trtkp, work: Path) -> None:
    training = ("--data", "data.npz", "--epochs", "1", "--lr", "1e-4")
    told = prune(trtkp, "net.pt2", "--point", "1", *training)
    one, two = told["report"]["points"]
    assert left(told) == (one["kernels"], one["params"], one["macs"])
    assert two["norms"]["3x3"]["ratio"] == pytest.approx(2 / 3, abs=0.01)
    assert two["params"] is None


def test_with_settings_by_layers_there_is_no_point_to_take(trtkp: Trtkp, work: Path) -> None:
    layers = {"2.weight": {"ratio": 0.25}, "6.weight": {"ratio": 0.5}}
    Path("own.json").write_text(json.dumps({"method": "pptkp", "layers": layers}))
    assert "points" not in prune(trtkp, "net.onnx", "--allocation", "own.json")["report"]
