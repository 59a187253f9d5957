"""Channel pruning: layers of a program as modules again, what goes with a channel, the smaller net, bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from examples.nets import export, resnet
from trtkp.errors import InputError, JobError
from trtkp.pipeline.build import build
from trtkp.pipeline.options import BuildOptions
from trtkp.pruning.methods.channels import Channels
from trtkp.pruning.modules import with_modules
from trtkp.pruning.run import prune
from trtkp.pruning.train.modes import set_training
from trtkp.verification.bundle import verify


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual net whose additions tie channels, ``net.pt2``."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("channels") / "net.pt2"
    torch.export.save(export(resnet.resnet20_cifar("B").eval(), (3, 32, 32)), file)
    return file


def test_layers_of_a_program_become_modules_of_their_names(source: Path) -> None:
    program = torch.export.load(source).module(check_guards=False)
    x = torch.randn(2, 3, 32, 32)
    before, names = program(x), set(dict(program.named_parameters()))
    net = with_modules(program)
    kinds = [type(module) for module in net.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.BatchNorm2d), kinds.count(nn.Linear)) == (21, 21, 1)
    assert set(dict(net.named_parameters())) == names
    assert torch.equal(net(x), before)
    set_training(net, True)
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    set_training(net, False)
    assert not torch.equal(net(x), before)  # the statistics moved


def test_a_ratio_of_the_channels_goes_with_what_depends_on_them(source: Path, tmp_path: Path) -> None:
    pruned = prune(source, tmp_path / "p", method="channels", ratio=0.5, allocation="uniform")
    totals = pruned.manifest.totals
    assert totals.retained_macs / totals.dense_macs == pytest.approx(0.25, abs=0.01)
    assert totals.retained_params / totals.dense_params == pytest.approx(0.25, abs=0.01)
    assert pruned.index_sets == {}
    bundle = build(tmp_path / "p", tmp_path / "b", options=BuildOptions(backend="onnxruntime"))
    assert verify(bundle.path).ok
    assert bundle.manifest.warnings == []
    assert bundle.manifest.totals.dense_macs == totals.retained_macs
    shapes = {tuple(t.dims)[:2] for t in onnx.load(bundle.path / "model.onnx").graph.initializer if len(t.dims) == 4}
    assert shapes == {(8, 3), (8, 8), (16, 8), (16, 16), (32, 16), (32, 32)}
    pruned = prune(source, tmp_path / "g", method="channels", ratio=0.5, round_to=4)
    assert 0.1 < pruned.manifest.totals.retained_macs / totals.dense_macs < 0.6


def test_the_channels_of_least_norm_go() -> None:
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        for i in range(8):
            net[0].weight[i] = 0.01 if i in (1, 5) else 1.0
            net[2].weight[:, i] = 0.01 if i in (1, 5) else 1.0
        net[0].bias.copy_(torch.arange(8.0))
    x = torch.zeros(2, 2, 8, 8)
    program = torch.export.export(net.eval(), (x,)).module(check_guards=False)
    made = Channels(ratio=0.25, allocation="uniform").convert(program, [_layer("0.weight")], [x], 0)
    assert made.get_parameter("0.bias").tolist() == [0, 2, 3, 4, 6, 7]
    assert made.get_parameter("2.weight").shape == (4, 6, 3, 3)


def _layer(name: str) -> Any:
    return type("Layer", (), {"name": name})


def test_outputs_that_would_change_and_a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    torch.export.save(export(net, (2, 8, 8)), tmp_path / "net.pt2")
    with pytest.raises(InputError, match=r"gives \[2, 4, 4, 4\], not \[2, 8, 4, 4\]; leave the last convolution out"):
        prune(tmp_path / "net.pt2", tmp_path / "p", method="channels", allocation="uniform")
    from trtkp.pruning.run import PruneOptions

    small = prune(tmp_path / "net.pt2", tmp_path / "p", method="channels", options=PruneOptions(skip=["2"]))
    assert small.manifest.totals.retained_params == (2 * 4 * 9 + 4) + (4 * 8 * 9 + 8)
    with pytest.raises(InputError, match="--method channels makes a smaller net; use trtkp prune"):
        build(tmp_path / "net.pt2", tmp_path / "b", method="channels")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(JobError, match=r"needs torch-pruning; pip install 'trtkp\[channels\]'"):
        prune(tmp_path / "net.pt2", tmp_path / "q", method="channels")
    assert not (tmp_path / "q").exists()


def test_training_goes_on_after_the_channels_are_gone(tmp_path: Path) -> None:
    from trtkp.pruning.run import PruneOptions
    from trtkp.pruning.train.recipe import Recipe, Training

    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    images = rng.normal(0, 0.3, (120, 1, 8, 8)).astype(np.float32)
    images[labels == 0, :, ::2] += 1
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    ).eval()  # fmt: skip
    torch.export.save(export(net, (1, 8, 8)), tmp_path / "net.pt2")
    options = PruneOptions(training=Training(finetune=Recipe(epochs=8, batch=30, lr=0.1)))
    made = prune(tmp_path / "net.pt2", tmp_path / "p", method="channels", options=options, data=tmp_path / "data.npz")
    accuracy = made.manifest.accuracy
    assert accuracy is not None
    assert accuracy["pruned"] > 0.8 > accuracy["one-shot"]
