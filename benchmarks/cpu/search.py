"""Compare ``trtkp search`` with uniform ratios and channel pruning at equal latency (docs/guides/search.md).

    python -m benchmarks.cpu.search --json benchmarks/results/search.json

A residual CNN of 64 to 256 channels is trained on the generated shapes. ``trtkp search`` finds ratios for V-SKP that
keep to a share of the dense latency. It is compared with V-SKP at one ratio in all layers, for every granularity of the
search, and with channel pruning by magnitude (torch-pruning). Each of these gets the smallest ratio, in steps of 2.5
points, whose measured latency is no more than that of the net that was found. All nets are fine-tuned in the same way
and then timed in turn in one run. Accuracy is that of ``engine.onnx`` on 10,000 test images. *As scored* is the score
in the search, on 256 training images with their batch statistics.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import trtkp
from benchmarks.provenance import provenance
from examples import shapes_data
from examples.digits_data import batches_of
from examples.nets import export
from examples.nets.shapes import shapes_cnn
from trtkp.budget.choices import Level
from trtkp.budget.net import Net
from trtkp.budget.options import SearchOptions
from trtkp.budget.run import run_search
from trtkp.data.labelled import LabelledData
from trtkp.engine.accuracy import decisions
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.pruning.masked import apply_masks
from trtkp.pruning.train.trainer import fine_tune
from trtkp.shapes import ShapeRange

WIDTH, THREADS, BATCH, EPOCHS, TUNING = 64, 2, 32, 7, 4
SHAPE = (3, 32, 32)
TARGETS, GROUPS = (0.6, 0.4), (32, 64)
STEP = 0.025
SAMPLES = 256


def main() -> None:
    """Train, search, prune, tune, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    report: dict[str, Any] = {"provenance": provenance(), "threads": THREADS, "batch": BATCH, "rows": []}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for row in _seed(seed, Path(folder)):
                report["rows"].append(row)
                if options.json:
                    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def table(report: dict[str, Any]) -> str:
    """The rows of a result file as the table of the documentation."""
    lines = [
        "| seed | target | net | MACs | latency, ms | of dense | as scored | before tuning | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['seed']} | {row['target']:.0%} | {row['net']} | {row['macs']:.1%} | {row['median_ms']:.2f} "
        f"| {row['share']:.1%} | {_percent(row['scored'])} | {row['untrained']:.1%} | {row['accuracy']:.1%} |"
        for row in report["rows"]
    ]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _seed(seed: int, folder: Path) -> list[dict[str, Any]]:
    train, test = shapes_data.load(4000, 10_000)
    torch.manual_seed(seed)
    dense = shapes_cnn(WIDTH)
    fine_tune(dense, {}, batches_of(*train, seed=seed), epochs=EPOCHS, lr=0.05, weight_decay=5e-4)
    source = _save(dense, folder / "dense.pt2")
    build = trtkp.BuildOptions(backend="onnxruntime", threads=THREADS, opt=[f"{BATCH}x3x32x32"])
    some = LabelledData(train[0][:SAMPLES], train[1][:SAMPLES])
    unpruned = trtkp.build(source, folder / "dense", method="none", options=build)
    rows = []
    for target in TARGETS:
        bundles, untrained = {"dense": unpruned}, {"dense": _accuracy(unpruned, test)}
        rivals, scores = _rivals(dense, source, target, seed, some, folder, build)
        for number, (name, model) in enumerate(rivals.items()):
            place = folder / f"net-{target:.0%}-{number}"
            kept = _zeros(model)
            raw = _build(_save(model, place.with_suffix(".raw.pt2")), place.with_suffix(".raw"), build)
            untrained[name] = _accuracy(raw, test)
            fine_tune(model, kept, batches_of(*train, seed=seed + 1), epochs=TUNING, lr=0.02, weight_decay=5e-4)
            apply_masks(model, kept)
            bundles[name] = _build(_save(model, place.with_suffix(".pt2")), place, build)
        timings = trtkp.bench(list(bundles.values()), batch=BATCH, threads=THREADS, runs=200, seconds=20.0)
        for (name, bundle), timing in zip(bundles.items(), timings, strict=True):
            row = {
                "seed": seed,
                "target": target,
                "net": name,
                "macs": round(bundle.manifest.totals.retained_macs / unpruned.manifest.totals.dense_macs, 4),
                "median_ms": round(timing.timing.median_ms, 4),
                "p10_ms": round(timing.timing.p10_ms, 4),
                "p90_ms": round(timing.timing.p90_ms, 4),
                "share": round(timing.timing.median_ms / timings[0].timing.median_ms, 4),
                "scored": scores.get(name),
                "untrained": untrained[name],
                "accuracy": _accuracy(bundle, test),
                "test_images": len(test[1]),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def _rivals(
    dense: nn.Module,
    source: Path,
    target: float,
    seed: int,
    some: LabelledData,
    folder: Path,
    build: trtkp.BuildOptions,
) -> tuple[dict[str, nn.Module], dict[str, float | None]]:
    """The net that was found and nets that take no longer, by name; and the score of each on the samples."""
    options = SearchOptions(target_latency=target, filter_groups=GROUPS, samples=SAMPLES, seed=seed)
    found = run_search(source, some, options, state=folder / f"found-{target}", options=build)
    net, allowed = Net(source, "vskp", {}, build, some, SAMPLES), found.measured.share
    models: dict[str, nn.Module] = {}
    scores: dict[str, float | None] = {"dense": found.dense.score}

    def add(name: str, levels: Mapping[str, Level]) -> None:
        models[name], scores[name] = _masked(dense, net.masks(levels)), net.quality(levels).score

    def alike(ratio: float, group: int) -> dict[str, Level]:
        return dict.fromkeys(net.layers, Level(ratio, group))

    def share(ratio: float, group: int) -> float:
        before, after = net.race(alike(ratio, group))
        return after.median_ms / before.median_ms

    add("searched", {name: choice.level for name, choice in found.chosen.items()})
    for group in GROUPS:
        ratio = _smallest(partial(share, group=group), allowed)
        if ratio is not None:
            add(f"uniform {ratio:.1%} of {group} x 1", alike(ratio, group))
    ratio = _smallest(partial(_channels_share, dense, folder=folder, build=build), allowed, most=0.85)
    if ratio is not None:
        models[f"channels {ratio:.1%}"] = _channels(dense, ratio)
    return models, scores


def _smallest(share: Callable[[float], float], allowed: float, most: float = 0.95) -> float | None:
    """The smallest ratio, by bisection over steps, whose latency is at most the share ``allowed`` of the dense one.

    For channel pruning, ``most`` must be smaller: where rounding to 8 channels would leave no channel, torch-pruning
    keeps the whole layer, and the latency rises again.
    """
    low, high = 0, round(most / STEP)
    if share(high * STEP) > allowed:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle * STEP) <= allowed else (middle, high)
    return round(high * STEP, 6)


def _channels_share(dense: nn.Module, ratio: float, folder: Path, build: trtkp.BuildOptions) -> float:
    bundles = [folder / "dense", _build(_save(_channels(dense, ratio), folder / "c.pt2"), folder / "c", build)]
    timings = trtkp.bench(bundles, batch=BATCH, threads=THREADS, runs=60, seconds=5.0)
    return timings[1].timing.median_ms / timings[0].timing.median_ms


def _channels(dense: nn.Module, ratio: float) -> nn.Module:
    """A copy of the net without the channels of smallest L1 norm, the same share in every layer."""
    import torch_pruning

    model = copy.deepcopy(dense).eval()
    example = torch.zeros(1, *SHAPE)
    pruner = torch_pruning.pruner.MetaPruner(
        model, example, importance=torch_pruning.importance.MagnitudeImportance(p=1), pruning_ratio=ratio,
        ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)], round_to=8,
    )  # fmt: skip
    pruner.step()
    return model


def _masked(dense: nn.Module, masks: Mapping[str, np.ndarray]) -> nn.Module:
    model = copy.deepcopy(dense)
    apply_masks(model, masks)
    return model


def _zeros(model: nn.Module) -> dict[str, np.ndarray]:
    """Masks of the weights that are not zero, for the layers that hold zeros."""
    masks = {name: weight.detach().numpy() != 0 for name, weight in model.named_parameters() if weight.ndim == 4}
    return {name: mask for name, mask in masks.items() if not mask.all()}


def _save(model: nn.Module, path: Path) -> Path:
    torch.export.save(export(model.eval(), SHAPE), path)
    return path


def _build(source: Path, bundle: Path, build: trtkp.BuildOptions) -> trtkp.Bundle:
    return trtkp.build(source, bundle, method="from-zeros", options=build)


def _accuracy(bundle: trtkp.Bundle, test: tuple[np.ndarray, np.ndarray]) -> float:
    profile = {
        name: ShapeRange(*(tuple(limits[which]) for which in ("min", "opt", "max")))
        for name, limits in bundle.manifest.profile.items()
    }
    data = LabelledData(*test)
    with OrtRunner(bundle.file("engine.onnx"), threads=THREADS) as runner:
        return float(np.mean(decisions(runner, data, profile) == data.labels))


if __name__ == "__main__":
    main()
