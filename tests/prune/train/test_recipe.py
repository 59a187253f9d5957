"""Recipes: schedules by hand, the files that ship, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtkp.errors import InputError
from trtkp.prune.registry import make_method
from trtkp.prune.train.recipe import Recipe, read_recipe

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
    assert {read_recipe(file).method for file in RECIPES} >= {"vskp", "soks", "pptkp", "kep"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune: [1, 2]", "finetune is no mapping"),
        ("finetun: {}", "the recipe: finetun means nothing; use data, finetune"),
        ("finetune: {lr: fast}", "finetune.lr: 'fast' is no float"),
        ("finetune: {schedule: steps}", "schedule steps: not known"),
        ("finetune: {nesterov: 1}", "finetune.nesterov: 1 is no bool"),
        ("finetune: {batch: 0}", "batches of 0"),
        ("finetune: {distil: 2}", "distillation weight 2.0"),
        ("data: {std: 0}", "not positive"),
        ("seed: x", "seed: 'x' is no int"),
        ("method: [kep]", r"method: \['kep'\] is no str"),
        ("method: ropes", "--method ropes: not known"),
        ("{method: soks, settings: {groups: 2.5}}", "setting groups: 2.5 is of the wrong type; give a whole number"),
        ("{method: kep, settings: {patterns: 2}}", "--patterns means nothing to method kep"),
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
