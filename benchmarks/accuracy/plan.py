"""The plan of the study: for every run its net, method, settings and epochs; and the sizes of data and nets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from trtkp.pruning.nm import list_ratio

__all__ = ["SCALES", "TABLES", "Run", "Scale", "runs_of"]

#: Tables, the most important first; ``dense`` are the nets that the others start from.
TABLES = ("dense", "groups", "two-four", "searched", "methods", "digits")


@dataclass(frozen=True)
class Scale:
    """Sizes of the study.

    Attributes:
        width: filters of the net's first layer; the others have 2, 2, 2 and 4 times as many.
        train: images to train with.
        test: images to measure accuracy on.
        noise: standard deviation of the noise in the generated images.
        dense: epochs of the dense nets.
        towards: epochs that train towards the masks.
        tune: epochs with the masks held. Methods that do not train towards masks get both numbers of epochs here.
        seeds: number of seeds in the tables of several seeds.
        groups: numbers of filters that share a list.
    """

    width: int = 32
    train: int = 4500
    test: int = 4000
    noise: float = 0.6
    dense: int = 16
    towards: int = 5
    tune: int = 5
    seeds: int = 3
    groups: tuple[int, ...] = (8, 16, 32)

    def digest(self) -> str:
        """A short hash, recorded with every row: results of different scales cannot be compared."""
        return sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


SCALES = {
    "full": Scale(),
    "smoke": Scale(width=8, train=96, test=64, dense=1, towards=1, tune=1, seeds=1, groups=(8,)),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: name of the run, unique in the study.
        table: the table it belongs to.
        label: label of its row.
        data: ``shapes`` or ``digits``.
        seed: seed of weights, order and augmentation.
        method: the value of ``--method``; ``none`` trains a dense net.
        settings: settings of the method. Channel pruning has ``macs`` instead of a ratio: it gets the ratio that leaves
            as many MACs as lists of kernels with the ratio ``macs``.
        start: name of the run whose net it starts from; None for a new net.
        epochs: epochs of the stages prepare, regularise and finetune.
    """

    name: str
    table: str
    label: str
    data: str
    seed: int
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    epochs: tuple[int, int, int] = (0, 0, 0)


#: Settings of the penalties. They are stronger than those of the recipes, because a training here has a few hundred
#: steps where the papers have tens of thousands. They were chosen in about 25 trainings of a seed that is in no table.
_PPTKP = {"strength": 0.03, "proximal": True}
_SOKS = {"sparsity": 1e-3, "margin": 1e-3, "diversity": 1e-3}
_KEP = {"delta": 5e-3}
_ALPHAS = (2e-4, 3e-4)
_DECIDING = 0.875
_RATIOS = (5 / 9, 7 / 9)
_GROUP = 16
#: Channels that are kept or removed together in the rows named ``16x8``: the block that tensor core kernels read.
_BLOCK = 8


def _pptkp(scale: Scale, ratio: float, **grouped: Any) -> dict[str, Any]:
    """PPT-KP's settings for a target ratio.

    The breakpoints are at most the ratio, so kernels that are to stay are not pushed. With groups of filters, the
    first three fifths of the epochs are on single kernels.
    """
    single = {"single_epochs": round(0.6 * scale.towards)} if grouped else {}
    return {**_PPTKP, "quantiles": [ratio * 4 / 7, ratio * 6 / 7, ratio], **grouped, **single}


def runs_of(scale: Scale) -> list[Run]:
    """All runs, the most important tables first. A run comes after the run that it starts from."""
    found: list[Run] = []
    for seed in range(scale.seeds):
        found.append(Run(f"shapes-{seed}", "dense", "dense", "shapes", seed, "none", {}, None, (0, 0, scale.dense)))
        found += _groups(scale, seed)
        found += _two_four(scale, seed)
    for seed in range(scale.seeds):
        found += _searched(scale, seed)
    found += _methods(scale, "methods", "shapes")
    found.append(Run("digits-0", "dense", "dense", "digits", 0, "none", {}, None, (0, 0, scale.dense)))
    found += _methods(scale, "digits", "digits")
    return found


def _groups(scale: Scale, seed: int) -> Iterator[Run]:
    """What shared lists cost in accuracy, and how much of it training with the groups recovers, at equal MACs."""
    dense, both = f"shapes-{seed}", scale.towards + scale.tune

    def run(label: str, method: str, settings: dict[str, Any], start: str, epochs: tuple[int, int, int]) -> Run:
        name = f"groups-{seed}-{label.replace(' ', '-')}"
        return Run(name, "groups", label, "shapes", seed, method, settings, start, epochs)

    lists = {"ratio": _DECIDING, "allocation": "uniform"}
    alone = run("regularised", "pptkp", {"ratio": 0.0, **_pptkp(scale, _DECIDING)}, dense, (0, scale.towards, 0))
    yield run("dense, trained on", "none", {}, dense, (0, 0, both))
    yield run("l1 1", "l1", lists, dense, (0, 0, both))
    yield alone
    yield run("pptkp 1", "pptkp", lists, alone.name, (0, 0, scale.tune))
    for group, block in [*((group, 1) for group in scale.groups), (min(_GROUP, max(scale.groups)), _BLOCK)]:
        grouped: dict[str, Any] = {"filter_group": group, "cluster": True}
        shared, size = lists | grouped, f"{group}"
        aware = lists | _pptkp(scale, _DECIDING, **grouped)
        equal: dict[str, Any] = {}
        if block > 1:
            # A list has few blocks of 8 channels, so the one block that PPT-KP always keeps would be a large share of
            # it: every list keeps the same number instead. Single kernels are not pushed first, because the blocks that
            # follow would cut across what that had sorted out.
            equal = {"channel_block": block, "equalise": True}
            shared |= {"channel_block": block}
            aware |= equal | {"single_epochs": 0}
            size = f"{group}x{block}"
        yield run(f"l1 {size}", "l1", shared, dense, (0, 0, both))
        yield run(f"pptkp {size} after", "pptkp", shared | equal, alone.name, (0, 0, scale.tune))
        yield run(f"pptkp {size} aware", "pptkp", aware, dense, (0, scale.towards, scale.tune))


def _two_four(scale: Scale, seed: int) -> Iterator[Run]:
    """Compare 2:4 inside lists with lists alone, plain 2:4 and channel pruning, with 1/2 and 1/8 of the MACs left."""
    group = min(_GROUP, max(scale.groups))
    coarse = {"filter_group": group, "cluster": True}
    rows: list[tuple[str, str, dict[str, Any]]] = []
    for ratio in (0.5, _DECIDING):
        share = f"{ratio:.1%}"
        rows += [
            (f"{share} one-filter lists", "vskp", {"ratio": ratio}),
            (f"{share} lists of {group}", "vskp", {"ratio": ratio, **coarse}),
            (f"{share} channels", "channels", {"macs": ratio}),
        ]
    rows += [
        ("50.0% plain 2:4", "vskp", {"ratio": 0.5, "nm": "2:4"}),
        (f"{_DECIDING:.1%} one-filter lists, 2:4 inside", "vskp", {"ratio": _DECIDING, "nm": "2:4"}),
        (f"{_DECIDING:.1%} lists of {group}, 2:4 inside", "vskp", {"ratio": _DECIDING, "nm": "2:4", **coarse}),
    ]
    trained = _pptkp(scale, list_ratio(_DECIDING), **coarse)
    inside = {"ratio": _DECIDING, "nm": "2:4"}
    rows.append((f"{_DECIDING:.1%} lists of {group}, 2:4 inside, pptkp", "pptkp", inside | trained))
    for number, (label, method, settings) in enumerate(rows):
        epochs = (0, scale.towards, scale.tune) if method == "pptkp" else (0, 0, scale.towards + scale.tune)
        yield Run(
            f"two-four-{seed}-{number}", "two-four", label, "shapes", seed, method,
            {**settings, "allocation": "uniform"}, f"shapes-{seed}", epochs,
        )  # fmt: skip


def _searched(scale: Scale, seed: int) -> Iterator[Run]:
    """Compare SOKS's searched shapes with shapes of largest magnitude and with fixed shapes of four positions."""
    both = scale.towards + scale.tune
    share: dict[str, Any] = {"ratio": 5 / 9, "allocation": "uniform"}
    rows: list[tuple[str, dict[str, Any], tuple[int, int, int]]] = [
        ("searched", share | _SOKS, (0, scale.towards, scale.tune)),
        ("searched, then trained as long", share | _SOKS, (0, scale.towards, both)),
        ("largest magnitude", share, (0, 0, both)),
        ("ASK_4a", {"shapes": "ASK_4a"}, (0, 0, both)),
        ("ASK_4b", {"shapes": "ASK_4b"}, (0, 0, both)),
        ("ASK_4a, as long as search and training", {"shapes": "ASK_4a"}, (0, 0, scale.towards + both)),
    ]
    for number, (label, settings, epochs) in enumerate(rows):
        yield Run(
            f"searched-{seed}-{number}", "searched", label, "shapes", seed, "soks", settings, f"shapes-{seed}", epochs
        )


def _methods(scale: Scale, table: str, data: str) -> Iterator[Run]:
    """Every method at two ratios, with the papers' lists of one filter and with lists of a group of filters."""
    start, group = f"{data}-0", min(_GROUP, max(scale.groups))
    trained, plain = (0, scale.towards, scale.tune), (0, 0, scale.towards + scale.tune)
    number = 0

    def run(label: str, method: str, settings: dict[str, Any], epochs: tuple[int, int, int]) -> Run:
        nonlocal number
        number += 1
        return Run(f"{table}-{number}", table, label, data, 0, method, settings, start, epochs)

    for ratio in _RATIOS:
        share = f"{ratio:.0%}"
        base = {"ratio": ratio, "allocation": "uniform"}
        coarse = {"filter_group": group, "cluster": True}
        yield run(f"l1 {share}", "l1", base, plain)
        yield run(f"l1 {share}, {group} x 1", "l1", base | coarse, plain)
        yield run(f"vskp {share}", "vskp", base, plain)
        yield run(f"vskp {share}, {group} x 1", "vskp", base | coarse, plain)
        yield run(f"pptkp {share}", "pptkp", base | _pptkp(scale, ratio), trained)
        yield run(f"pptkp {share}, {group} x 1", "pptkp", base | _pptkp(scale, ratio, **coarse), trained)
        yield run(f"soks {share}", "soks", base | _SOKS, trained)
        yield run(f"soks {share}, per layer", "soks", base | _SOKS | {"groups": 1}, trained)
        yield run(f"kep {share}", "kep", base | _KEP, trained)
        yield run(f"kep {share}, per layer", "kep", base | _KEP | {"share": "per-layer"}, trained)
        yield run(f"channels {share}", "channels", {"macs": ratio, "allocation": "uniform"}, plain)
    yield run("2:4", "vskp", {"ratio": 0.5, "allocation": "uniform", "nm": "2:4"}, plain)
    for alpha in _ALPHAS:
        epochs = (scale.towards, scale.towards, scale.tune)
        yield run(f"dppnet, alpha {alpha:g}", "dppnet", {"alpha": alpha}, epochs)
