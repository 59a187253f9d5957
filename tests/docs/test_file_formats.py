"""The examples and the tables of docs/reference/files.md, against what reads such files."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from trtkp.pruning.methods.allocation import load_allocation
from trtkp.pruning.train.recipe import Preprocessing, Recipe, read_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text(encoding="utf-8")


def example(language: str, path: Path) -> Path:
    """The page's only block in a language, as a file."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_examples_are_read(tmp_path: Path) -> None:
    allocation = load_allocation(example("json", tmp_path / "allocation.json"))
    assert allocation.method == "vskp"
    assert [layer.ratio for layer in allocation.layers.values()] == [0.6]
    training = read_recipe(example("yaml", tmp_path / "recipe.yaml"))
    assert (training.regularise.epochs, training.finetune.epochs) == (200, 100)


@pytest.mark.parametrize("settings", [Recipe, Preprocessing])
def test_every_key_of_a_recipe_is_in_a_table_with_its_default(settings: type[Recipe | Preprocessing]) -> None:
    shown: dict[str, str] = {}
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            keys, defaults = (cell.split(", ") for cell in line.split(" | ")[:2])
            shown |= {key.strip("| `"): default for key, default in zip(keys, defaults, strict=False)}
    for each in fields(settings):
        assert shown[each.name] == as_text(each.default)


def as_text(default: object) -> str:
    """A default as the tables write it."""
    match default:
        case bool():
            return str(default).lower()
        case ():
            return "none"
        case (value,):
            return as_text(value)
        case float():
            return "1e-4" if default == 1e-4 else f"{default:g}"
        case str():
            return f"`{default}`"
    return str(default)
