"""Compare accuracy and latency of INT8 and fp32, dense and pruned: the table of docs/guides/calibrate.md.

    python -m benchmarks.cpu.int8 --json benchmarks/results/int8.json

Two nets are trained from scratch on a CPU, one on scikit-learn's digits and one on the generated shapes of
``examples/shapes_data.py``. Each is used dense, and pruned by KEP (n = 4, one set of positions per layer) with a short
fine-tune. Each is built for ONNX Runtime in fp32 and calibrated on training images with every calibrator, at the
default limit of 0.5 points on those images. Accuracy is that of ``engine.onnx`` on test images that calibration has not
seen. The standard error of a drop is that of the mean difference between the two engines, image by image. Then the
bundles of a net are timed in turn on 2 threads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trtkp
from benchmarks.provenance import provenance
from examples import digits_data, shapes_data
from examples.digits_data import batches_of
from examples.nets import export
from examples.nets.digits import digits_cnn
from examples.nets.shapes import shapes_cnn
from trtkp.data.labelled import LabelledData
from trtkp.engine.accuracy import decisions
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.pruning.masked import apply_masks
from trtkp.pruning.train.trainer import fine_tune
from trtkp.shapes import ShapeRange

METHODS = ("min-max", "entropy", "percentile")
THREADS, BATCHES, CALIBRATION_IMAGES, TEST_SHAPES = 2, (1, 32), 1000, 10_000

Data = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
#: Name to the net, its data, the epochs of training and the epochs of fine-tuning.
NETS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], Data], int, int]] = {
    "digits": (digits_cnn, digits_data.load, 6, 4),
    "shapes": (shapes_cnn, partial(shapes_data.load, test=TEST_SHAPES), 7, 4),
}


def main() -> None:
    """Train, build, calibrate, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"provenance": provenance(), "threads": THREADS, "rows": []}
    for name in NETS:
        with tempfile.TemporaryDirectory() as folder:
            report["rows"] += _net(name, Path(folder))
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")


def table(report: dict[str, Any]) -> str:
    """The rows of a result file as the table of the documentation."""
    lines = [
        "| net | variant | engine | int8 layers | accuracy | drop | error | batch 1, ms | batch 32, ms | speed-ups |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        layers = f"{row['layers_int8']} of {row['layers']}" if row["layers"] else "-"
        one, many = row["batch_1"], row["batch_32"]
        drop = f"{row['drop_points']:.2f} ± {row['drop_standard_error']:.2f}"
        lines.append(
            f"| {row['net']} | {row['variant']} | {row['engine']} | {layers} | {row['accuracy']:.1%} "
            f"| {drop} | {row['error']:.3f} | {one['median_ms']:.3f} | {many['median_ms']:.2f} "
            f"| {one['speed_up']:.2f}, {many['speed_up']:.2f} |"
        )
    return "\n".join(lines)


def _net(name: str, folder: Path) -> list[dict[str, Any]]:
    factory, load, epochs, tuning = NETS[name]
    torch.manual_seed(0)
    train, test = load()
    shape = train[0].shape[1:]
    model = factory()
    fine_tune(model, {}, batches_of(*train), epochs=epochs, lr=0.05, weight_decay=5e-4)
    build = trtkp.BuildOptions(backend="onnxruntime", threads=THREADS, opt=[f"32x{'x'.join(map(str, shape))}"])
    dense = trtkp.build(_save(model, shape, folder / "dense.pt2"), folder / "dense", method="none", options=build)
    mask = trtkp.build(folder / "dense.pt2", folder / "mask", method="kep", share="per-layer", options=build)
    masks = {layer: index.mask() for layer, index in mask.index_sets.items()}
    fine_tune(model, masks, batches_of(*train, seed=1), epochs=tuning, lr=0.02)
    apply_masks(model, masks)
    source = _save(model, shape, folder / "kep.pt2")
    kep = trtkp.build(source, folder / "kep", method="kep", share="per-layer", options=build)
    calibration = LabelledData(train[0][:CALIBRATION_IMAGES], train[1][:CALIBRATION_IMAGES])
    rows = []
    for variant, bundle in (("dense", dense), ("kep per-layer", kep)):
        made = {"fp32": bundle} | {
            method: trtkp.calibrate(
                bundle, folder / f"{bundle.path.name}-{method}", data=calibration, options=build,
                calibration=trtkp.CalibrationOptions(calibrator=method),
            )
            for method in METHODS
        }  # fmt: skip
        rows += _rows(name, variant, made, LabelledData(*test))
    return rows


def _rows(name: str, variant: str, made: dict[str, trtkp.Bundle], test: LabelledData) -> list[dict[str, Any]]:
    timings = {
        batch: trtkp.bench(list(made.values()), batch=batch, threads=THREADS, runs=200, seconds=12.0)
        for batch in BATCHES
    }
    rows: list[dict[str, Any]] = []
    base = np.zeros(0, bool)
    for i, (kind, bundle) in enumerate(made.items()):
        record = bundle.manifest.quantisation
        profile = {
            key: ShapeRange(*(tuple(limits[which]) for which in ("min", "opt", "max")))
            for key, limits in bundle.manifest.profile.items()
        }
        with OrtRunner(bundle.file("engine.onnx"), threads=THREADS) as runner:
            right = decisions(runner, test, profile) == test.labels
        base = right if kind == "fp32" else base
        lost = np.subtract(base, right, dtype=np.float64)
        row = {
            "net": name,
            "variant": variant,
            "density": round(bundle.manifest.totals.retained_macs / bundle.manifest.totals.dense_macs, 4),
            "engine": kind,
            "layers_int8": sum(choice.precision == "int8" for choice in record.layers.values()) if record else 0,
            "layers": len(record.layers) if record else None,
            "accuracy": round(float(right.mean()), 6),
            "drop_points": round(100 * lost.mean(), 3),
            "drop_standard_error": round(100 * lost.std() / np.sqrt(len(lost)), 3),
            "test_images": len(test.labels),
            "error": record.scores.error if record else 0.0,
            "engine_bytes": bundle.manifest.files["engine.onnx"].bytes,
        }
        for batch, results in timings.items():
            timing, first = results[i].timing, results[0].timing
            row[f"batch_{batch}"] = {
                "median_ms": round(timing.median_ms, 4),
                "p10_ms": round(timing.p10_ms, 4),
                "p90_ms": round(timing.p90_ms, 4),
                "runs": timing.runs,
                "speed_up": round(first.median_ms / timing.median_ms, 3),
            }
        rows.append(row)
        speeds = ", ".join(f"batch {b} {row[f'batch_{b}']['speed_up']:.2f}x" for b in BATCHES)
        drop = f"drop {row['drop_points']:6.2f} ± {row['drop_standard_error']:.2f}"
        print(f"{name:8} {variant:14} {kind:10} {row['accuracy']:7.2%} {drop}  {speeds}", flush=True)
    return rows


def _save(model: torch.nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    torch.export.save(export(model.eval(), shape), path)
    return path


if __name__ == "__main__":
    main()
