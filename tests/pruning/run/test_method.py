"""Which method `trtkp.prune` prunes with: the one it is given, else the recipe's, else KEP."""

from __future__ import annotations

from pathlib import Path

import pytest

import trtkp
from tests.models import write_classifier

RECIPE = trtkp.Training(method="vskp", settings={"ratio": 0.75, "filter_group": 16})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "net.onnx", (3, 16, 16))


def pruned(model: Path, training: trtkp.Training, **given: str | float) -> tuple[str, dict[str, object]]:
    options = trtkp.PruneOptions(training=training)
    manifest = trtkp.prune(model, model.parent / "pruned", options=options, **given).manifest  # type: ignore[arg-type]
    return manifest.method, manifest.settings


def test_kep_without_any(model: Path) -> None:
    assert pruned(model, trtkp.Training())[0] == "kep"


def test_that_of_the_recipe_with_its_settings(model: Path) -> None:
    method, settings = pruned(model, RECIPE)
    assert (method, settings["ratio"], settings["filter_group"]) == ("vskp", 0.75, 16)


def test_settings_win_over_those_of_the_recipe(model: Path) -> None:
    for given in ({}, {"method": "vskp"}):
        method, settings = pruned(model, RECIPE, ratio=0.5, **given)
        assert (method, settings["ratio"], settings["filter_group"]) == ("vskp", 0.5, 16)


def test_settings_of_a_recipe_are_for_its_own_method(model: Path) -> None:
    method, settings = pruned(model, RECIPE, method="soks")
    assert (method, settings["ratio"], settings["filter_group"]) == ("soks", None, None)


def test_an_object_has_its_own(model: Path) -> None:
    options = trtkp.PruneOptions(training=RECIPE)
    manifest = trtkp.prune(model, model.parent / "pruned", method=trtkp.KEP(n=3), options=options).manifest
    assert (manifest.method, manifest.settings["n"]) == ("kep", 3)
