"""How much time fewer MACs save: packed layers and nets against dense ones, in ONNX Runtime on 2 threads.

    python -m benchmarks.cpu.packing --json benchmarks/results/packing.json

There are four parts of a few minutes each. ``--part`` chooses some. Parts that the result file already has are not
measured again.

- ``layers``: single 3x3 layers whose filters share lists in groups of 64 (32 if F = 64), at several densities; also
  with lists of odd lengths, and with the filters shuffled.
- ``vgg``: VGG-16 for CIFAR-10, with the shapes of ASK_4a, and by V-SKP with lists of 64 filters.
- ``resnet56``: V-SKP with lists of one filter, as in the paper, on a ResNet-56 trained on ``examples/shapes_data.py``.
- ``resnet50``: V-SKP without 60 % of the kernels, with lists of 64 filters in 3x3 layers and of 256 in 1x1 layers.

All nets but ResNet-56 have random weights. Weights decide which kernels are removed, but not how long the rest takes.
Every figure is the median of runs that alternate with the dense engine in one process. Densities are the share of the
MACs that is left, of the whole net or layer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper

import trtkp
from benchmarks.provenance import provenance
from examples import shapes_data
from examples.digits_data import batches_of
from examples.nets import export, settle_batch_norm
from examples.nets.resnet import resnet50, resnet56_cifar
from examples.nets.vgg import vgg16_cifar
from trtkp.engine.feeds import random_feeds
from trtkp.graph.save import save_graph
from trtkp.machine.timing import Timing, time_interleaved
from trtkp.pruning.masked import apply_masks
from trtkp.pruning.train.trainer import fine_tune

THREADS, BATCH = 2, 8
#: Filters, channels and size of the layers.
LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
DENSITIES = (0.25, 0.4, 0.6, 0.75, 0.9)
#: The positions, 1 to 9 row by row, that each quarter of a layer's filters keeps (SOKS's authors, ASKs).
ASK_4A = ((1, 2, 4, 5), (2, 3, 5, 6), (4, 5, 7, 8), (5, 6, 8, 9))
_TIME_LIMIT_S = 20.0

Row = dict[str, Any]


def main() -> None:
    """Measure the parts that are missing; print and write the results after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--again", action="store_true", help="measure parts again that the file already has")
    options = parser.parse_args()
    known = options.json.is_file() if options.json else False
    report: dict[str, Any] = json.loads(options.json.read_text()) if known else {"parts": {}}
    for part in options.part or PARTS:
        if part in report["parts"] and not options.again:
            print(f"{part}: measured already")
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = list(PARTS[part](Path(folder)))
        report["parts"][part] = {"provenance": provenance(), "threads": THREADS, "batch": BATCH, "rows": rows}
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")


def table(report: dict[str, Any]) -> str:
    """The rows of a result file as the table of the documentation."""
    lines = [
        "| net | variant | MACs left | bound | lists' overlap | dense, ms | packed, ms | speed-up | lowerings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in report["parts"].values():
        for row in part["rows"]:
            lowerings = ", ".join(f"{count} {lowering}" for lowering, count in row["forms"].items())
            overlap = f"{row['overlap']:.2f}" if row.get("overlap") is not None else "-"
            lines.append(
                f"| {row['net']} | {row['variant']} | {row['density']:.1%} | {row['bound']:.2f} | {overlap} "
                f"| {row['dense_ms']:.2f} | {row['median_ms']:.2f} | {row['speed_up']:.2f} | {lowerings} |"
            )
    return "\n".join(lines)


def layers(folder: Path) -> Iterator[Row]:
    """Single layers."""
    for width, size in LAYERS:
        group = 32 if width == 64 else 64
        variants: dict[str, np.ndarray] = {}
        for density in DENSITIES:
            variants[f"{density:.0%}"] = _lists(width, group, density, 16)
            variants[f"{density:.0%}, odd lengths"] = _lists(width, group, density, 1)
        variants["25%, filters shuffled"] = np.random.default_rng(1).permutation(variants["25%"])
        variants["40%, a list per filter"] = _lists(width, 1, 0.4, 1)
        yield from _measure(
            folder,
            f"{width}@{size}",
            {name: _layer_model(folder, width, size, kept) for name, kept in variants.items()},
            {name: {"method": "from-zeros"} for name in variants},
            {name: _overlap(kept) for name, kept in variants.items()},
        )


def vgg(folder: Path) -> Iterator[Row]:
    """VGG-16 with prescribed shapes and with shared lists."""
    torch.manual_seed(0)
    model = settle_batch_norm(vgg16_cifar(), (3, 32, 32))
    dense = _save(model, (3, 32, 32), folder / "vgg.pt2")
    uniform = {"method": "vskp", "ratio": 0.75, "filter_group": 64}
    with_shapes = vgg16_cifar()
    with_shapes.load_state_dict(model.state_dict())
    _keep_shapes(with_shapes)
    sources = {
        "ASK_4a": _save(with_shapes.eval(), (3, 32, 32), folder / "ask.pt2"),
        "V-SKP 75 %, uniform, 64 filters": dense,
        "V-SKP 75 %, global, 64 filters": dense,
    }
    settings = {
        "ASK_4a": {"method": "from-zeros"},
        "V-SKP 75 %, uniform, 64 filters": uniform | {"allocation": "uniform"},
        "V-SKP 75 %, global, 64 filters": uniform | {"allocation": "global"},
    }
    yield from _measure(folder, "VGG-16-CIFAR", sources, settings, dense=dense)


def resnet56(folder: Path) -> Iterator[Row]:
    """A trained ResNet-56 with one list per filter: the planner's choice, and fixed numbers of groups."""
    train, _ = shapes_data.load(train=2000)
    torch.manual_seed(0)
    model = resnet56_cifar()
    fine_tune(model, {}, batches_of(*train), epochs=2, lr=0.05, weight_decay=5e-4)
    source = _save(model.eval(), (3, 32, 32), folder / "resnet56.pt2")
    vskp = {"method": "vskp", "ratio": 0.7}
    settings: dict[str, dict[str, Any]] = {
        "V-SKP 0.7, planned": vskp,
        "V-SKP 0.7, gather as listed": vskp | {"lowering": "gather"},
    } | {f"V-SKP 0.7, gather-{groups}": vskp | {"lowering": f"gather-{groups}"} for groups in (2, 4)}
    for row in _measure(folder, "ResNet-56", dict.fromkeys(settings, source), settings, dense=source):
        yield row | _joined(trtkp.load(folder / "ResNet-56-0"))


def resnet50_rows(folder: Path) -> Iterator[Row]:
    """ResNet-50 with shared lists."""
    torch.manual_seed(0)
    source = _save(settle_batch_norm(resnet50(), (3, 224, 224)), (3, 224, 224), folder / "resnet50.pt2")
    shared = {"method": "vskp", "ratio": 0.6, "allocation": "uniform", "filter_group": 64, "filter_group_1x1": 256}
    name = "V-SKP 60 %, uniform, 64 filters (1x1: 256)"
    yield from _measure(folder, "ResNet-50", {name: source}, {name: shared}, dense=source)


PARTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "layers": layers,
    "vgg": vgg,
    "resnet56": resnet56,
    "resnet50": resnet50_rows,
}


def _measure(
    folder: Path,
    net: str,
    sources: Mapping[str, Path],
    settings: Mapping[str, Mapping[str, Any]],
    overlaps: Mapping[str, float] | None = None,
    dense: Path | None = None,
) -> Iterator[Row]:
    """Build every variant and the dense engine, and time them all in turn."""
    built = {"dense": _build(dense or next(iter(sources.values())), folder / f"{net}-dense", method="none")}
    for number, (name, source) in enumerate(sources.items()):
        built[name] = _build(source, folder / f"{net}-{number}", **settings[name])
    times = _times(built)
    for name in sources:
        bundle, timing = built[name], times[name]
        totals = bundle.manifest.totals
        density = totals.retained_macs / totals.dense_macs
        row = {
            "net": net,
            "variant": name,
            "density": round(density, 4),
            "bound": round(1 / density, 3),
            "overlap": overlaps[name] if overlaps else None,
            "dense_ms": round(times["dense"].median_ms, 4),
            "median_ms": round(timing.median_ms, 4),
            "p10_ms": round(timing.p10_ms, 4),
            "p90_ms": round(timing.p90_ms, 4),
            "runs": timing.runs,
            "speed_up": round(times["dense"].median_ms / timing.median_ms, 3),
            "packed_share": _packed_share(bundle),
            "forms": _lowerings(bundle),
        }
        print(
            f"{net:13} {name:44} {density:6.1%} left, bound {row['bound']:5.2f}: {row['speed_up']:.2f}x  "
            f"{row['packed_share']:.0%} of the pruned MACs packed, {row['forms']}",
            flush=True,
        )
        yield row


def _build(source: Path, output: Path, *, method: str, lowering: str = "auto", **settings: Any) -> trtkp.Bundle:
    options = trtkp.BuildOptions(backend="onnxruntime", threads=THREADS, lowering=lowering)
    return trtkp.build(source, output, method=method, options=options, **settings)


def _times(bundles: Mapping[str, trtkp.Bundle]) -> dict[str, Timing]:
    """All engines on the same input, in turn."""
    with ExitStack() as stack:
        calls = {}
        for name, bundle in bundles.items():
            runner = stack.enter_context(bundle.open(threads=THREADS))
            shapes = {key: (BATCH, *limits["opt"][1:]) for key, limits in bundle.manifest.profile.items()}
            feeds = random_feeds(runner.inputs, shapes, seed=0)
            calls[name] = lambda runner=runner, feeds=feeds: runner.run(feeds)
        return time_interleaved(calls, warmup=3, runs=60, time_limit_s=_TIME_LIMIT_S)


def _lowerings(bundle: trtkp.Bundle) -> dict[str, int]:
    """How many layers have each lowering."""
    found = [layer.lowering for layer in bundle.manifest.layers if layer.lowering is not None]
    return {lowering: found.count(lowering) for lowering in sorted(set(found))}


def _packed_share(bundle: trtkp.Bundle) -> float:
    """Of the MACs that pruning removed, the share in layers whose lowering is not dense."""
    pruned = {layer.node: layer.dense_macs - layer.retained_macs for layer in bundle.manifest.layers}
    packed = [layer.node for layer in bundle.manifest.layers if layer.lowering not in (None, "dense")]
    return round(sum(pruned[node] for node in packed) / max(1, sum(pruned.values())), 4)


def _lists(width: int, group: int, density: float, multiple: int) -> np.ndarray:
    """Kernels to keep, bool [F, C]. Every filter group has a random list; their lengths add up to the density."""
    rng = np.random.default_rng(0)
    groups = width // group
    total = max(groups, round(density * width * groups / multiple))
    counts = [multiple * (total // groups + (g < total % groups)) for g in range(groups)]
    kept = np.zeros((width, width), bool)
    for g, count in enumerate(counts):
        kept[g * group : (g + 1) * group, rng.permutation(width)[: min(count, width)]] = True
    return kept


def _overlap(kept: np.ndarray) -> float:
    """Mean Jaccard overlap of pairs of distinct lists; at most 64 lists are compared."""
    lists = np.unique(kept, axis=0)[:64]
    pairs = [(a & b).sum() / (a | b).sum() for a, b in combinations(lists, 2)]
    return round(float(np.mean(pairs)), 3) if pairs else 1.0


def _layer_model(folder: Path, width: int, size: int, kept: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((width, width, 3, 3)) / np.sqrt(9 * width)).astype(np.float32)
    weight[~kept] = 0
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", width, size, size]) for name in ("x", "y")
    )
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    bias = rng.standard_normal(width).astype(np.float32)
    initializers = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "layer", [x], [y], initializers)
    path = folder / f"{width}-{len(list(folder.glob('*.onnx')))}.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save_graph(ir.from_proto(model), path)
    return path


def _keep_shapes(model: torch.nn.Module) -> None:
    """Set the weights that ASK_4a does not keep to zero, in all layers but the first."""
    masks = {}
    for name, parameter in list(model.named_parameters()):
        if parameter.ndim == 4 and parameter.shape[1] > 3:
            mask = np.zeros((*parameter.shape[:2], 9), bool)
            for quarter, shape in zip(np.array_split(np.arange(len(mask)), 4), ASK_4A, strict=True):
                mask[np.ix_(quarter, np.arange(mask.shape[1]), np.array(shape) - 1)] = True
            masks[name] = mask.reshape(parameter.shape)
    apply_masks(model, masks)


def _joined(bundle: trtkp.Bundle) -> Row:
    """Share of the kernels that is computed if groups of 16 filters share the union of their lists.

    One figure is for consecutive filters, the other for clustered ones.
    """
    from trtkp.plan.lowerings.regroup import Grouping, equal_groups

    naive = clustered = total = 0
    for index in bundle.index_sets.values():
        kept = index.mask().any(axis=(2, 3))
        groups = max(1, len(kept) // 16)
        naive += Grouping.of(np.array_split(np.arange(len(kept)), groups), kept).kernels
        clustered += equal_groups(kept, groups).kernels
        total += kept.size
    return {"joined_naive": round(naive / total, 4), "joined_clustered": round(clustered / total, 4)}


def _save(model: torch.nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    torch.export.save(export(model, shape), path)
    return path


if __name__ == "__main__":
    main()
