"""Recipes: schedules by hand, the files that ship, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trtkp.errors import InputError
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.train.recipe import STAGES, Recipe, read_recipe

RECIPES = sorted((Path(__file__).parents[3] / "examples" / "recipes").glob("*.yaml"))


def test_schedules() -> None:
    steps = Recipe(epochs=200, lr=0.1, schedule="multistep", milestones=(100, 150))
    assert [round(steps.rate(epoch), 6) for epoch in (0, 99, 100, 149, 150, 199)] == [
        0.1,
        0.1,
        0.01,
        0.01,
        0.001,
        0.001,
    ]
    wave = Recipe(epochs=10, lr=0.1, final_lr=0.02)
    assert wave.rate(0) == pytest.approx(0.1)
    assert wave.rate(5) == pytest.approx(0.06)
    assert wave.rate(10) == pytest.approx(0.02)
    assert Recipe(epochs=9, lr=0.3, schedule="constant").rate(8) == 0.3


def test_settings_of_a_method(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("method: dppnet\nsettings: {alpha: 8e-6}\n")
    assert read_recipe(file).settings == {"alpha": 8e-6}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_that_ship(file: Path) -> None:
    training = read_recipe(file)
    assert training.method is not None
    method = make_method(training.method, **training.settings)
    assert method.name == training.method
    # SWP trains around what it has zeroed, and fine-tunes nothing
    assert (training.regularise if file.stem == "swp-cifar" else training.finetune).epochs > 0


def test_there_is_a_recipe_for_every_paper() -> None:
    assert {read_recipe(file).method for file in RECIPES} >= {"vskp", "soks", "pptkp", "kep", "dppnet"}


#: Every training is SGD with this; the authors' code gives the weight decay, and for V-SKP and DPPNet the momentum.
_SGD = {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}
#: "x 0.1 at half and at three quarters", and the fine-tunes that are reconstructed.
_200 = {"epochs": 200, "lr": 0.1, "schedule": "multistep", "milestones": (100, 150), "gamma": 0.1, "batch": 128}
_160 = {"epochs": 160, "lr": 0.1, "schedule": "multistep", "milestones": (80, 120), "gamma": 0.1, "batch": 128}
_TUNE = {"lr": 0.01, "schedule": "cosine", "final_lr": 0.0, "batch": 128}
_IMAGENET = {"epochs": 90, "lr": 0.1, "schedule": "cosine", "final_lr": 1e-6, "batch": 256}

#: What each recipe holds; its own first lines say which of it the authors give and which of it is ours.
_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "vskp-cifar": {"settings": {"alpha": 0.95}, "finetune": _TUNE | {"epochs": 200}},
    "vskp-imagenet": {
        "settings": {"alpha": 0.85, "beta": 0.75, "pointwise_keep": 1e-3},
        "finetune": {
            "epochs": 90, "lr": 0.01, "schedule": "multistep", "milestones": (30, 60), "gamma": 0.1, "batch": 64
        },
    },
    "soks-cifar": {
        "settings": {
            "groups": 4, "threshold": 0.05, "sparsity": 1e-4, "margin": 1e-5, "diversity": 1e-5, "retrain": True
        },
        "regularise": _160 | {"epochs": 80, "milestones": (40, 60), "batch": 64},
        "finetune": _160 | {"batch": 64},
    },
    "swp-cifar": {
        "settings": {
            "filter_group": 1, "remove_filters": True, "threshold": 0.01, "sparsity": 1e-5, "margin": 0, "diversity": 0
        },
        "regularise": _160 | {"batch": 64},
    },
    "pptkp-cifar": {
        "settings": {"strength": 1e-4, "quantiles": [0.25, 0.5, 0.75], "intensities": [1, 0.5, 0.25, 0]},
        "regularise": _200,
        "finetune": _TUNE | {"epochs": 100},
    },
    "kep-cifar": {
        "settings": {"n": 4, "delta": 1e-4, "every": 10},
        "regularise": {"lr": 0.01, "schedule": "constant", "batch": 128},
        "finetune": _TUNE,
    },
    "dppnet-cifar": {
        "settings": {"patterns": 4, "alpha": 1e-4, "temperature": 0.5},
        "prepare": _160,
        "regularise": _160,
        "finetune": {"epochs": 40, "lr": 0.01, "schedule": "cosine", "final_lr": 1e-4, "batch": 128},
    },
    "dppnet-imagenet": {
        "settings": {"patterns": 4, "alpha": 8e-6, "temperature": 0.5},
        "prepare": _IMAGENET,
        "regularise": _IMAGENET,
        "finetune": {"epochs": 40, "lr": 0.01, "schedule": "cosine", "final_lr": 1e-4, "batch": 256},
    },
}  # fmt: skip


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_hold_the_trainings_that_they_say(file: Path) -> None:
    training, stated = read_recipe(file), _SETTINGS[file.stem]
    assert training.settings.items() >= stated["settings"].items()
    for name in STAGES:
        stage = getattr(training, name)
        assert (stage.epochs > 0) == (name in stated), name
        wanted = _SGD | stated[name] if name in stated else {}
        assert {key: getattr(stage, key) for key in wanted} == wanted, name


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_prepare_the_data_as_they_say(file: Path) -> None:
    """Flip, a crop of the image padded by 4 (resized on ImageNet), ImageNet's statistics; SOKS and SWP take ASKs'."""
    data = read_recipe(file).data
    assert data.flip
    assert (data.pad, data.resized_crop) == ((0, True) if "imagenet" in file.stem else (4, False))
    asks = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    of_asks = file.stem in ("soks-cifar", "swp-cifar")
    assert (data.mean, data.std) == (asks if of_asks else imagenet)
    assert read_recipe(file).seed == (1 if of_asks else 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune: [1, 2]", "finetune is no mapping"),
        ("finetun: {}", "the recipe: finetun is not known; use data, finetune"),
        ("finetune: {lr: fast}", "setting finetune.lr: 'fast' is of the wrong type; give a number"),
        ("finetune: {schedule: steps}", "finetune.schedule steps: not known; use one of constant, cosine, multistep"),
        ("finetune: {nesterov: 1}", "setting finetune.nesterov: 1 is of the wrong type; give true or false"),
        ("finetune: {batch: 0}", "finetune.batch 0: out of range; give 1 or more"),
        ("finetune: {distil: 2}", "finetune.distil 2: out of range; give 0 to 1"),
        ("data: {std: 0}", "data.std 0: out of range; give more than 0"),
        ("seed: x", "setting seed: 'x' is of the wrong type; give a whole number"),
        ("method: [kep]", r"setting method: \['kep'\] is of the wrong type; give a name"),
        ("method: ropes", "--method ropes: not known"),
        ("{method: soks, settings: {groups: 2.5}}", "setting groups: 2.5 is of the wrong type; give a whole number"),
        ("{method: kep, settings: {patterns: 2}}", "--patterns is a setting of dppnet, not of kep"),
        ("!!python/object/apply:os.system [echo]", "not a readable recipe"),
        ("a: [", "not a readable recipe"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_recipe(file)
    assert error.value.file == str(file)
    assert "\n" not in str(error.value)
