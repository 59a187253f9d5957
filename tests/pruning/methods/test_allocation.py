"""Allocation files: settings layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trtkp
from tests.models import write_classifier
from trtkp.budget.options import AdviceOptions
from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.pruning.methods.allocation import Allocation, LayerSettings, load_allocation
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.methods.vskp import VSKP
from trtkp.pruning.one_shot import prune_one_shot


def write(path: Path, **given: object) -> Path:
    path.write_text(json.dumps({"format": 1, "method": "vskp", "layers": {}, **given}))
    return path


def test_every_layer_by_its_own_settings(new_layer: Callable[..., ConvLayer], tmp_path: Path) -> None:
    layers = [new_layer(name=name, channels=8) for name in ("a", "b", "c")]
    rng = np.random.default_rng(0)
    weights = {layer.name: rng.standard_normal(layer.weight_shape) for layer in layers}
    own = {"a": {"ratio": 0.5}, "b": {"ratio": 0.25, "filter_group": 2}}
    path = write(tmp_path / "a.json", settings={"alpha": 0.5}, layers=own)
    method = make_method("vskp", allocation=str(path))
    pruning = prune_one_shot(method, layers, weights)
    assert set(pruning.masks) == {"a", "b"}
    for name, alone in (
        ("a", VSKP(0.5, "uniform", alpha=0.5)),
        ("b", VSKP(0.25, "uniform", alpha=0.5, filter_group=2)),
    ):
        layer = next(layer for layer in layers if layer.name == name)
        np.testing.assert_array_equal(pruning.masks[name], alone.masks([layer], weights)[name])
    assert pruning.left_dense == {"c": "the allocation leaves it dense"}
    assert method.settings() == {"alpha": 0.5, "allocation": own}


def test_written_and_read(tmp_path: Path) -> None:
    allocation = Allocation(method="kep", layers={"x": LayerSettings(ratio=0.5)})
    (tmp_path / "a.json").write_text(json.dumps(allocation.as_dict()))
    assert load_allocation(tmp_path / "a.json") == allocation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not an allocation: file: Invalid JSON"),
        ("[" * 100_000, "not an allocation: file: Invalid JSON"),
        ("\xff", "not an allocation: file: Invalid JSON"),
        ("[]", "not an allocation: file: Input should be an object"),
        ('{"method": "vskp"}', "not an allocation: layers: Field required"),
        ('{"method": 3, "layers": {}}', "not an allocation: method: Input should be a valid string"),
        ('{"method": "vskp", "layers": {}, "speed": 3}', "not an allocation: speed: Extra inputs are not permitted"),
        ('{"method": "vskp", "layers": {}, "settings": 3}', "not an allocation: settings: Input should be an object"),
        ('{"format": 2, "method": "vskp", "layers": {}}', "not an allocation: format"),
        ('{"format": 1, "method": "vskp", "layers": {"a": {"ratio": 1.5}}}', r"not an allocation: layers\.a\.ratio"),
        ('{"format": 1, "method": "vskp", "layers": {"a": {"ratio": 0.5, "speed": 3}}}', r"layers\.a\.speed"),
        ('{"method": "vskp", "layers": {"a": {"ratio": true}}}', r"layers\.a\.ratio: Input should be a valid number"),
        ('{"method": "vskp", "layers": {"a": {"ratio": -1}}}', r"layers\.a\.ratio: .* greater than or equal to 0"),
        ('{"method": "vskp", "layers": {"a": {"ratio": NaN}}}', "NaN is not JSON"),
        ('{"method": "vskp", "layers": {"a": {"ratio": 0.5, "filter_group": 0}}}', r"filter_group: .* equal to 1"),
        ('{"method": "vskp", "layers": {"a": {"ratio": 0.5, "filter_group": 2.5}}}', r"filter_group: .* valid integer"),
        ('{"method": "vskp", "layers": {"a": []}}', r"layers\.a: Input should be an object"),
    ],
)
def test_files_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        load_allocation(tmp_path / "a.json")


def test_wrong_use(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    with pytest.raises(InputError, match="the allocation is for vskp, not kep; use --method vskp"):
        make_method("kep", allocation=str(path))
    with pytest.raises(InputError, match="--ratio and an allocation file exclude each other"):
        make_method("vskp", allocation=str(path), ratio=0.5)
    with pytest.raises(InputError, match=r"--allocation nope: no such file; use global, uniform, or a file"):
        make_method("vskp", allocation="nope")


def test_an_advice_and_a_ratio(new_layer: Callable[..., ConvLayer], tmp_path: Path) -> None:
    kernel = {"kind": "kernel", "filter_group": 2, "channel_block": 1}
    advice = {
        "format": "trtkp.advice",
        "version": 1,
        "model": "net",
        "layers": {
            "a": {"shape": [4, 8, 3, 3], "recommended": kernel},
            "b": {"recommended": {**kernel, "kind": "stripe"}},
            "c": {"recommended": None, "reason": "nothing pays"},
        },
    }
    path = tmp_path / "advice.json"
    path.write_text(json.dumps(advice))
    method = make_method("vskp", allocation=str(path), ratio=0.5, alpha=0.9)
    layers = [new_layer(name=name, channels=8) for name in ("a", "b", "c")]
    rng = np.random.default_rng(0)
    weights = {layer.name: rng.standard_normal(layer.weight_shape) for layer in layers}
    pruning = prune_one_shot(method, layers, weights)
    alone = VSKP(0.5, "uniform", alpha=0.9, filter_group=2).masks(layers[:1], weights)
    assert pruning.masks.keys() == {"a"}
    np.testing.assert_array_equal(pruning.masks["a"], alone["a"])
    with pytest.raises(InputError, match=r"advice\.json: advice says where to prune, not how much; give --ratio"):
        make_method("vskp", allocation=str(path))
    path.write_text(json.dumps({**advice, "version": 2}))
    with pytest.raises(InputError, match="not an allocation: version"):
        make_method("vskp", allocation=str(path), ratio=0.5)


def test_what_advise_prints_is_taken(tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "net.onnx", (3, 32, 64))
    path = tmp_path / "advice.json"
    path.write_text(trtkp.advise(model, AdviceOptions(seconds=3, batch=2)).model_dump_json())
    assert make_method("vskp", allocation=str(path), ratio=0.5).name == "vskp"


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1])
def test_an_advice_with_a_ratio_out_of_range_is_an_input_error(tmp_path: Path, ratio: float) -> None:
    file = tmp_path / "advice.json"
    best = {"kind": "kernel", "filter_group": 8, "channel_block": 1}
    file.write_text(json.dumps({"format": "trtkp.advice", "version": 1, "layers": {"a": {"recommended": best}}}))
    with pytest.raises(InputError, match="--ratio"):
        load_allocation(file, "vskp", ratio=ratio)


def test_layers_train_towards_masks_of_their_own_settings(new_layer: Callable[..., ConvLayer], tmp_path: Path) -> None:
    layers = [new_layer(name=f"{i}.weight", filters=8, channels=8) for i in range(3)]
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in layers))
    own = {"0.weight": {"ratio": 0.5}, "1.weight": {"ratio": 0.5, "filter_group": 4}, "2.weight": {"ratio": 0.5}}
    path = write(tmp_path / "a.json", method="pptkp", settings={"strength": 0.5}, layers=own)
    method = make_method("pptkp", allocation=str(path))
    assert method.regularises
    assert not make_method("vskp", allocation=str(write(tmp_path / "v.json", layers=own))).regularises
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    penalty = method.regulariser(net, layers)
    net(torch.randn(2, 8, 9, 9)).sum().mul(0).backward()
    penalty.after_backward()
    pulls = {layer.name: net.get_parameter(layer.name).grad / before[layer.name].sign() for layer in layers}
    for name, pull in pulls.items():
        blocks = pull.abs().amax(dim=(2, 3)).reshape(2, 4, 8)
        alike = bool((blocks == blocks[:, :1]).all())
        assert alike == (own[name].get("filter_group") == 4), name  # one intensity for the filters of a group
        assert pull.abs().max() == 0.5
    masks = penalty.masks()
    assert set(masks) == set(own)
    grouped = masks["1.weight"].reshape(2, 4, 8, 9)
    assert (grouped == grouped[:, :1]).all()
    state = {key: value.clone() for key, value in penalty.state().items()}
    other = method.regulariser(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in layers)), layers)
    assert any(not torch.equal(value, state[key]) for key, value in other.state().items())
    other.restore(state)
    assert all(torch.equal(value, state[key]) for key, value in other.state().items())
    assert len(penalty.report()["parts"]) == 2


def test_a_search_taken_up_under_an_allocation_folds_its_coefficients(
    new_layer: Callable[..., ConvLayer], tmp_path: Path
) -> None:
    layers = [new_layer(name=f"{i}.weight", filters=4, channels=4) for i in range(2)]
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in layers))
    path = write(tmp_path / "a.json", method="soks", settings={"groups": 2},
                 layers={"0.weight": {"ratio": 0.5}, "1.weight": {"ratio": 0.25}})  # fmt: skip
    penalty = make_method("soks", allocation=str(path)).regulariser(net, layers)
    penalty.loss().backward()
    masks = penalty.masks()
    assert [masks[layer.name].mean() for layer in layers] == pytest.approx([1 / 2, 14 / 18])
    assert "parametrizations.weight.original" in dict(net[0].named_parameters())
    penalty.finish()
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_layer_that_is_chosen_but_not_in_the_file_is_named(
    new_layer: Callable[..., ConvLayer], tmp_path: Path
) -> None:
    layers = [new_layer(name=f"{i}.weight", filters=4, channels=4) for i in range(2)]
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in layers))
    path = write(tmp_path / "a.json", method="pptkp", settings={}, layers={"0.weight": {"ratio": 0.5}})
    method = make_method("pptkp", allocation=str(path))
    weights = {layer.name: np.ones(layer.weight_shape) for layer in layers}
    for ask in (lambda: method.masks(layers, weights), lambda: method.regulariser(net, layers)):
        with pytest.raises(InputError, match=r"1\.weight.*the allocation file does not name it"):
            ask()


def test_a_method_that_makes_another_net_takes_no_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", method="channels", settings={}, layers={"0.weight": {"ratio": 0.5}})
    words = r"a\.json: method channels makes another net, .* by layers; use global or uniform, and --skip"
    with pytest.raises(InputError, match=words):
        make_method("channels", allocation=path)
    assert make_method("channels", allocation="uniform").settings()["allocation"] == "uniform"
