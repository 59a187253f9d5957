"""Options are made from the settings classes: none is lost, all have help, and errors say which method owns one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from trtkp.budget.options import AdviceOptions, SearchOptions
from trtkp.calib.options import CalibrationOptions
from trtkp.cli.app import COMMANDS, load_command
from trtkp.cli.parameters import Given, Only, command, parameters_of
from trtkp.cli.reference import reference
from trtkp.comparison.bench import bench
from trtkp.comparison.run import compare
from trtkp.engine.options import TrtOptions
from trtkp.errors import InputError
from trtkp.pipeline.options import BuildOptions
from trtkp.pruning.methods.registry import METHODS
from trtkp.pruning.run.options import PruneOptions
from trtkp.pruning.train.recipe import Preprocessing, Recipe
from trtkp.serving.options import ServeOptions
from trtkp.settings import Declared, Setting, describe, settings_of
from trtkp.verification.bundle import verify

from .conftest import Trtkp

#: Every option of version 0.1 by command: a switch, one value, or several.
OLD: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "options_0_1.json").read_text())

OWNERS = [
    AdviceOptions, BuildOptions, CalibrationOptions, Preprocessing, PruneOptions, Recipe, SearchOptions, ServeOptions,
    TrtOptions, bench, compare, verify, *METHODS.values(),
]  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_no_option_of_the_old_version_is_lost(name: str) -> None:
    params = {
        spelling: param for param in load_command(name).params for spelling in (*param.opts, *param.secondary_opts)
    }
    for spellings, kind in OLD[name].items():
        for spelling in spellings.split("/"):
            param = params[spelling]
            assert ("flag" if param.is_flag else "many" if param.multiple else "value") == kind, spelling


def test_the_same_commands_are_there() -> None:
    assert list(OLD) == list(COMMANDS)


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_every_setting_is_a_sentence(owner: Any) -> None:
    for item in describe(owner):
        assert re.fullmatch(r"[A-Za-z0-9].*\.", item.help), item
        assert item.type


def test_flags_are_not_shared_by_settings_of_one_command() -> None:
    for name in COMMANDS:
        spellings = [each for param in load_command(name).params for each in (*param.opts, *param.secondary_opts)]
        assert len(spellings) == len(set(spellings)), name


def test_the_reference_has_every_command_and_option() -> None:
    text = reference()
    parts = dict(zip(COMMANDS, re.split(r"^## trtkp .*$", text, flags=re.MULTILINE)[1:], strict=True))
    for name, part in parts.items():
        for param in load_command(name).params:
            for spelling in (*param.opts, *param.secondary_opts):
                assert (f"`{spelling}`" in part) != getattr(param, "hidden", False), (name, spelling)
    for label, owner in METHODS.items():
        for item in settings_of(owner).values():
            assert item.setting.help in parts["prune"], (label, item.name)


# --- help -------------------------------------------------------------------------------------------------------------


def shown(trtkp: Trtkp, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    done = trtkp(*arguments)
    assert done.status == 0
    return done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_is_short(trtkp: Trtkp, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert len(shown(trtkp, monkeypatch, name, "--help").splitlines()) <= 50


@pytest.mark.parametrize("name", ["build", "prune", "search"])
def test_help_of_a_long_command_fits_a_screen(trtkp: Trtkp, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text = shown(trtkp, monkeypatch, name, "--help")
    assert "--help-all" in text
    assert "--alpha" not in text
    for essential in ("--output", "--method", "--data", "--input-shape", "--layers"):
        assert essential in text


@pytest.mark.parametrize("line", ["--method vskp --help", "--help -m vskp", "net.onnx -o x --method=vskp -h"])
def test_help_with_a_method_adds_its_settings(trtkp: Trtkp, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    text = shown(trtkp, monkeypatch, "build", *line.split())
    assert "Settings of vskp" in text
    for setting in settings_of(METHODS["vskp"]).values():
        assert (setting.flag in text) == (not setting.setting.trained)
    assert "--share" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_all_options_has_them_all(trtkp: Trtkp, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    params = load_command(name).params
    wanted = "--help-all" if any("--help-all" in param.opts for param in params) else "--help"
    text = shown(trtkp, monkeypatch, name, wanted)
    for param in params:
        for spelling in (each for each in param.opts if each.startswith("--")):
            assert (spelling in text) >= (not getattr(param, "hidden", False)), spelling


def test_help_of_all_options_says_what_each_method_means(trtkp: Trtkp, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(shown(trtkp, monkeypatch, "prune", "--help-all").replace("│", " ").split())
    assert "vskp: Weight of a kernel's magnitude" in text
    assert "dppnet: Weight of the penalty in the loss" in text


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["build net.onnx", "prune net.onnx", "search net.onnx --target-flops 50% -m kep"])
def test_a_setting_of_another_method_is_said_to_whose_it_is(trtkp: Trtkp, folder: Path, line: str) -> None:
    done = trtkp(*line.split(), "-o", "new", "--alpha", "0.5")
    assert done.status == 2
    assert done.message == "--alpha is a setting of vskp and dppnet, not of kep; leave it out, or use --method vskp"


_ALL_SETTINGS = [(method, item) for method, kind in METHODS.items() for item in settings_of(kind).values()]


@pytest.mark.parametrize("line", ["build missing.onnx", "search missing.onnx --target-flops 50%"])
@pytest.mark.parametrize(("method", "item"), _ALL_SETTINGS, ids=[f"{name}-{each.name}" for name, each in _ALL_SETTINGS])
def test_no_setting_of_a_method_is_an_unknown_option(trtkp: Trtkp, line: str, method: str, item: Declared) -> None:
    """Every setting is taken, or refused with whose it is, whether or not that method is the chosen one."""
    value = {bool: (), int: ("1",), float: ("0.5",)}.get(item.plain, (item.choices[0] if item.choices else "0.5",))
    chosen = "kep" if item.name not in settings_of(METHODS["kep"]) else method
    done = trtkp(*line.split(), "-o", "new", "--method", chosen, item.flag, *value)
    assert done.status == 2
    searched = line.startswith("search") and item.setting.searched
    if searched:
        assert done.message == f"the search chooses {item.flag}; leave it out"
    elif item.setting.trained and all(other.setting.trained for _, other in _ALL_SETTINGS if other.name == item.name):
        owners = " or ".join(name for name, other in _ALL_SETTINGS if other.name == item.name)
        assert done.message == f"{item.flag} is a setting of training with {owners}; use trtkp prune"
    elif chosen != method:
        assert f"{item.flag} is a setting of " in done.message
        assert "not of kep" in done.message
    else:
        assert "No such option" not in done.message


def test_a_search_takes_the_settings_of_its_method(trtkp: Trtkp, folder: Path) -> None:
    pytest.importorskip("optuna", reason="package optuna is not installed")
    done = trtkp("search", "net.onnx", "-o", "new", "--target-flops", "50%", "--nm", "2:4", "--filter-group-1x1", "32")
    assert "give --data" in done.message  # and nothing about the two


# --- the way from a function to its parameters ------------------------------------------------------------------------


def made(function: Any, **given: Any) -> None:
    """Call a command with what typer would read."""
    run = command(function)
    run(**{name: given.get(name, None if each.is_required else each._default())
           for name, each in parameters_of(run).items()})  # fmt: skip


def test_a_command_gets_instances_and_what_was_given() -> None:
    got: dict[str, Any] = {}

    def probe(
        *,
        options: Annotated[BuildOptions, Only("keep_io", "threads", "calibration")],
        server: Annotated[ServeOptions, Only("grpc_port", "body_bytes")],
        settings: Annotated[dict[str, Any], Given(METHODS, chosen_by="method")],
        searched: Annotated[dict[str, Any], Given({"": SearchOptions}, only=("target_flops",))],
        often: Annotated[int, Setting("Times.", ge=1)] = 1,
    ) -> None:
        got.update(locals())

    made(probe)
    assert got["options"] == BuildOptions()
    assert got["server"] == ServeOptions()
    assert (got["settings"], got["searched"], got["often"]) == ({}, {}, 1)
    made(probe, convert_io=True, threads=3, mean="0.5,0.25,0", grpc_port=-1, max_body=0.5, ratio=0.0, cluster=False,
         quantiles="0.25,0.5", target_flops="60%", often=2)  # fmt: skip
    assert got["options"] == BuildOptions(
        keep_io=False, threads=3, calibration=CalibrationOptions(mean=(0.5, 0.25, 0.0))
    )
    assert got["server"] == ServeOptions(grpc_port=None, body_bytes=1 << 19)
    assert got["settings"] == {"ratio": 0.0, "cluster": False, "quantiles": (0.25, 0.5)}
    assert (got["searched"], got["often"]) == ({"target_flops": 0.6}, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"often": 0}, "--often 0: out of range; give 1 or more"),
        ({"mean": "a"}, "--mean a: not numbers separated by commas; write --mean 0.5,0.25"),
        ({"std": "1,0"}, "--std 1,0: out of range; give more than 0"),
        ({"max_body": 0.0}, "--max-body 0: out of range; give more than 0"),
        ({"target_flops": "half"}, "--target-flops half: not a share; write it as 60%"),
    ],
)
def test_values_are_checked_before_the_command_runs(given: dict[str, Any], message: str) -> None:
    def probe(
        *,
        calibration: CalibrationOptions,
        server: Annotated[ServeOptions, Only("body_bytes")],
        searched: Annotated[dict[str, Any], Given({"": SearchOptions}, only=("target_flops",))],
        often: Annotated[int, Setting("Times.", ge=1)] = 1,
    ) -> None:
        pytest.fail("it ran")

    with pytest.raises(InputError) as error:
        made(probe, **given)
    assert str(error.value) == message


def test_a_parameter_that_is_no_setting_is_refused() -> None:
    def probe(*, text: str) -> None:
        pytest.fail("it ran")

    with pytest.raises(TypeError, match="parameter text is no setting"):
        command(probe)


@dataclass(frozen=True)
class Drawn:
    seed: Annotated[int, Setting("Seed of the draw.")] = 0
    n: Annotated[float, Setting("Share of the elements.")] = 0.5


def test_two_settings_of_one_command_need_two_names() -> None:
    def probe(
        *,
        settings: Annotated[dict[str, Any], Given({"drawn": Drawn}, chosen_by="method")],
        seed: Annotated[int, Setting("Seed of the training.")] = 0,
    ) -> None:
        pytest.fail("it ran")

    with pytest.raises(TypeError, match="trtkp probe: Drawn has an option --seed, so has probe; rename one of them"):
        command(probe)


def test_settings_of_several_methods_with_one_name_have_one_type() -> None:
    def probe(*, settings: Annotated[dict[str, Any], Given({"kep": METHODS["kep"], "drawn": Drawn})]) -> None:
        pytest.fail("it ran")

    with pytest.raises(TypeError, match="trtkp probe: --n has another type in each of Drawn, KEP"):
        command(probe)
