"""State dicts: wrappers, prefixes, factories, mismatches; and the formats that are code."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.model.conftest import Net, Touch, make_net
from trtkp.errors import InputError
from trtkp.model import load_model
from trtkp.shapes import Dim

ARCH = "tests.model.conftest:Net"
SHAPE = ["1x3x8x8"]
X = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)


class FixedBatch(nn.Module):
    """Takes no batch but the one it was written for."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.reshape(4, 8))


def no_module() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("no\nsuch luck")


def needs_arguments(width: int) -> nn.Module:
    return nn.Linear(width, width)


def check(path: Path, **options: Any) -> None:
    model = load_model(path, input_shape=SHAPE, **options)
    with torch.no_grad():
        expected = make_net()(torch.tensor(X)).numpy()
    np.testing.assert_allclose(next(iter(model.run({"x": X}).values())), expected, atol=1e-6)
    assert model.inputs[0].shape == (Dim("batch", 1, None), 3, 8, 8)
    assert "conv.weight" in model.parameters()


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in make_net().state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": state, "acc": 93.1},
        lambda state: {"ema": {"state_dict": state}},
        lambda state: {**state, "epoch": 3},
    ],
)
def test_wrappers(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(make_net().state_dict()), tmp_path / "a.pth")
    check(tmp_path / "a.pth", arch=ARCH)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    torch.save({"state_dict": renamed(prefix)}, tmp_path / "a.pth")
    check(tmp_path / "a.pth", arch=ARCH)


def test_averaged_model(tmp_path: Path) -> None:
    torch.save({"n_averaged": torch.tensor(4), **renamed("module.")}, tmp_path / "a.pth")
    check(tmp_path / "a.pth", arch=ARCH)


def test_old_serialisation(tmp_path: Path) -> None:
    torch.save(make_net().state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    check(tmp_path / "a.pth", arch=ARCH)


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(make_net().state_dict(), tmp_path / "a.bin")
    check(tmp_path / "a.bin", arch=ARCH)


def test_saved_on_a_gpu(tmp_path: Path) -> None:
    """The location of each storage in the pickle says cuda:0."""
    path = tmp_path / "a.pth"
    torch.save(make_net().state_dict(), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    on_gpu = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert on_gpu != data
    path.write_bytes(on_gpu)
    check(path, arch=ARCH)


def test_half_precision_becomes_the_networks(tmp_path: Path) -> None:
    """Checkpoints are often kept in half precision; the network says what it runs in."""
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in renamed("").items()}, tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth", arch=ARCH, input_shape=SHAPE)
    assert model.parameters()["conv.weight"].dtype == np.float32


def test_factory_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text("from tests.model.conftest import Net\nclass Zoo:\n    small = Net\n")
    monkeypatch.chdir(tmp_path)
    torch.save(make_net().state_dict(), "a.pth")
    check(Path("a.pth"), arch="own_networks:Zoo.small")


@pytest.mark.parametrize(
    ("arch", "match"),
    [
        ("net", "not of the form"),
        ("a b:c", "not of the form"),
        ("os:system('x')", "not of the form"),
        ("no_such_module:net", "no module named no_such_module"),
        ("tests.model.conftest:Missing", "Missing"),
        ("tests.model.test_checkpoint:no_module", "gives a int"),
        ("tests.model.test_checkpoint:failing", "RuntimeError: no such luck"),
        ("tests.model.test_checkpoint:needs_arguments", "width"),
        ("tests.model.test_checkpoint:ARCH", "not callable"),
    ],
)
def test_bad_factories(tmp_path: Path, arch: str, match: str) -> None:
    torch.save(make_net().state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=match) as caught:
        load_model(tmp_path / "a.pth", arch=arch, input_shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_needs_a_factory_and_a_shape(tmp_path: Path) -> None:
    torch.save(make_net().state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"conv.weight, bn.weight, bn.bias, ...\); name the network with --arch"):
        load_model(tmp_path / "a.pth")
    with pytest.raises(InputError, match="--input-shape 1x3x224x224"):
        load_model(tmp_path / "a.pth", arch=ARCH)
    with pytest.raises(InputError, match="no input of that name"):
        load_model(tmp_path / "a.pth", arch=ARCH, input_shape=["image:1x3x8x8"])
    with pytest.raises(InputError, match="the inputs are x"):
        load_model(tmp_path / "a.pth", arch=ARCH, input_shape={"image": (1, 3, 8, 8)})
    with pytest.raises(InputError, match="cannot export the model with input 1x4x8x8"):
        load_model(tmp_path / "a.pth", arch=ARCH, input_shape=["1x4x8x8"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("conv.weight"), "1 missing: conv.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (lambda s: s.update({"fc.bias": torch.zeros(6)}), r"fc.bias is \[6\], the network's \[5\]"),
        (lambda s: [s.pop(k) for k in list(s)[:4]], "4 missing: conv.weight, bn.weight, bn.bias, ..."),
    ],
)
def test_mismatches(tmp_path: Path, change: Callable[[Any], Any], match: str) -> None:
    state = dict(make_net().state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(InputError, match=match):
        load_model(tmp_path / "a.pth", arch=ARCH, input_shape=SHAPE)


@pytest.mark.parametrize("value", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"model": {"lr": 1}}])
def test_no_state_dict(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        load_model(tmp_path / "a.pth", arch=ARCH, input_shape=SHAPE)


def test_static_batch_with_a_warning(tmp_path: Path) -> None:
    torch.save(FixedBatch().state_dict(), tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth", arch="tests.model.test_checkpoint:FixedBatch", input_shape=["4x2x4"])
    assert model.inputs[0].shape == (4, 2, 4)
    assert "batch is fixed" in model.warnings[0]


def test_network_is_put_into_evaluation_mode(tmp_path: Path) -> None:
    torch.save(Net().train().state_dict(), tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth", arch=ARCH, input_shape=SHAPE)
    assert not model.module().training


@pytest.mark.parametrize("new", [True, False])
def test_pickles_are_not_executed(tmp_path: Path, marker: Path, new: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"w": Touch(marker)}}, path, _use_new_zipfile_serialization=new)
    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(InputError, match="is a pickle of more than tensors, which is code; use --trust-pickle"):
        load_model(path, arch=ARCH, input_shape=SHAPE)
    assert not marker.exists()


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net, "epoch": 1}])
def test_pickled_module(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    path = tmp_path / "a.pt"
    torch.save(wrap(make_net()), path)
    with pytest.raises(InputError, match="--trust-pickle"):
        load_model(path, input_shape=SHAPE)
    check(path, trust_pickle=True)
    assert load_model(path, input_shape=SHAPE, trust_pickle=True).format == "pickle"


def test_pickle_of_something_else(tmp_path: Path, marker: Path) -> None:
    torch.save(Touch(marker), tmp_path / "a.pt")
    with pytest.raises(InputError, match="NoneType, not a module"):
        load_model(tmp_path / "a.pt", input_shape=SHAPE, trust_pickle=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("traced", [True, False])
def test_torchscript(tmp_path: Path, traced: bool) -> None:
    path = tmp_path / "a.pt"
    net = make_net()
    (torch.jit.trace(net, torch.zeros(1, 3, 8, 8)) if traced else torch.jit.script(net)).save(str(path))
    with pytest.raises(InputError, match="TorchScript, which is code; use --trust-pickle"):
        load_model(path, input_shape=SHAPE)
    model = load_model(path, input_shape=SHAPE, trust_pickle=True)
    (name,) = (spec.name for spec in model.inputs)
    with torch.no_grad():
        expected = net(torch.tensor(X)).numpy()
    np.testing.assert_allclose(next(iter(model.run({name: X}).values())), expected, atol=1e-6)
    assert {"conv.weight", "fc.bias"} <= set(model.graph().graph.initializers)
    assert dict(model.module().named_parameters()).keys() == dict(net.named_parameters()).keys()
    assert model.inputs[0].shape == (Dim("batch", 1, None), 3, 8, 8)
