"""The demo: train a CNN on real digits, prune it by KEP, build and verify engines, and time them against the dense net.

Builds and checks run through the command line, as a user would type it, and every command is printed. The output is in
``demo-out/``.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program from anywhere

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import trtkp
from benchmarks.provenance import provenance
from examples.digits_data import batches_of, load
from examples.nets import export
from examples.nets.digits import digits_cnn
from trtkp.cli import main as trtkp_command
from trtkp.cli.compare import show as show_comparison
from trtkp.comparison import Comparison
from trtkp.engine import get_backend
from trtkp.pruning.masked import apply_masks
from trtkp.pruning.train.trainer import fine_tune

WIDTH, EPOCHS, TUNING_EPOCHS, BATCH = 64, 5, 3, 32
REPORT = "report.html"
#: Name of each variant, and the options that prune it.
VARIANTS = {
    "dense": ["--method", "none"],
    "kep": ["--method", "kep"],
    "kep-per-layer": ["--method", "kep", "--share", "per-layer"],
}

console = Console(highlight=False, width=160 if not sys.stdout.isatty() else None)


def command(*arguments: str) -> None:
    """Print a trtkp command line and run it."""
    console.print(f"\n[bold]$ trtkp {' '.join(arguments)}[/]", soft_wrap=True)
    status = trtkp_command(arguments)
    if status:
        sys.exit(status)


def train(train_set: tuple[np.ndarray, np.ndarray]) -> torch.nn.Module:
    """Train the dense model on x [N, 1, 16, 16] and y [N]."""
    torch.manual_seed(0)
    model = digits_cnn(WIDTH)
    start = time.perf_counter()
    fine_tune(model, {}, batches_of(*train_set), epochs=EPOCHS, lr=0.05, weight_decay=5e-4)
    console.print(f"Trained a CNN on {len(train_set[0])} digits in {time.perf_counter() - start:.0f} s.")
    return model


def save(model: torch.nn.Module, path: Path) -> str:
    """Export a model to a file in the recommended format, an exported program; gives the path."""
    with path.open("wb") as file:
        torch.export.save(export(model, (1, 16, 16)), file)
    return str(path)


def tuned(model: torch.nn.Module, bundle: trtkp.Bundle, train_set: tuple[np.ndarray, np.ndarray]) -> torch.nn.Module:
    """A copy of the model with the bundle's masks, after a short fine-tune that keeps pruned weights at zero."""
    copy = digits_cnn(WIDTH)
    copy.load_state_dict(model.state_dict())
    masks = {name: index.mask() for name, index in bundle.index_sets.items()}
    fine_tune(copy, masks, batches_of(*train_set, seed=1), epochs=TUNING_EPOCHS, lr=0.02)
    apply_masks(copy, masks)
    return copy


def compared_with_report(bundles: Iterable[trtkp.Bundle], out: Path) -> Comparison:
    """Show and write what ``trtkp compare`` does; gives the comparison too, for the table."""
    names, data = [str(bundle.path) for bundle in bundles], str(out / "test.npz")
    line = f"trtkp compare {' '.join(names)} --batch 1,{BATCH} --data {data} --html {out / REPORT}"
    console.print(f"\n[bold]$ {line}[/]", soft_wrap=True)
    comparison = trtkp.compare(names, batches=(1, BATCH), data=data)
    report = trtkp.write_report(comparison, out / REPORT, command=line)
    show_comparison(comparison, [report], json=False)
    return comparison


def main() -> None:
    """Train, build every variant for both backends, verify, compare, and print one table."""
    out = Path("demo-out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    start = time.perf_counter()
    train_set, test_set = load()
    np.savez(out / "test.npz", x=test_set[0], y=test_set[1])
    model = train(train_set)
    save(model, out / "model.pt")
    rtx = get_backend("tensorrt-rtx").availability()

    one_shot, final, engines = {}, {}, {}
    for name, options in VARIANTS.items():
        source = str(out / "model.pt")
        common = [*options, "--backend", "onnxruntime", "--opt", f"{BATCH}x1x16x16", "--data", str(out / "test.npz")]
        command("build", source, *common, "-o", str(out / name))
        one_shot[name] = final[name] = trtkp.load(out / name)
        if name != "dense":  # fine-tune with the masks of the bundle, then build again with the same options
            source = save(tuned(model, one_shot[name], train_set), out / f"{name}-tuned.pt")
            command("build", source, *common, "-o", str(out / f"{name}-tuned"))
            final[name] = trtkp.load(out / f"{name}-tuned")
        if rtx.can_build:
            engine = str(out / f"{name}-rtx")
            command("build", source, *options, "--backend", "tensorrt-rtx", "--precision", "fp16", "-o", engine)
            engines[name] = trtkp.load(engine)
    if not rtx.can_build:
        console.print(f"\nNo TensorRT-RTX engines: {rtx.detail}", soft_wrap=True)

    for made in (*final.values(), *engines.values()):
        command("verify", str(made.path))
    command("inspect", str(final["kep-per-layer"].path))
    comparison = compared_with_report(final.values(), out)
    latencies = {Path(entry.name): entry.latencies[-1] for entry in comparison.entries}

    table = Table(title="Dense and pruned, side by side", title_style="bold", header_style="bold", box=None)
    table.add_column("variant", no_wrap=True)
    for heading in (
        "accuracy\none-shot", "accuracy\nfine-tuned", "params", "MACs", "density", "bound\n1/density", "index\nbytes",
        "engine.onnx\nbytes", "RTX engine\nbytes (fp16)", "latency ms\nONNX Runtime", "speed-up",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    rows = []
    for name, bundle in final.items():
        totals, latency = bundle.manifest.totals, latencies[bundle.path]
        timing = latency.timing
        before, after = one_shot[name].manifest.accuracy, bundle.manifest.accuracy
        assert before is not None
        assert after is not None
        density = totals.retained_macs / totals.dense_macs
        rows.append(
            {
                "variant": name,
                "accuracy_one_shot": before["pruned"],
                "accuracy_fine_tuned": after["pruned"],
                "params": totals.retained_params,
                "macs": totals.retained_macs,
                "density": round(density, 4),
                "index_bytes": totals.index_bytes,
                "engine_onnx_bytes": bundle.manifest.files["engine.onnx"].bytes,
                "rtx_engine_bytes": engines[name].manifest.files["model.engine"].bytes if name in engines else None,
                "batch": BATCH,
                "latency_ms": {"median": timing.median_ms, "p10": timing.p10_ms, "p90": timing.p90_ms},
                "speed_up": round(latency.speed_up.value, 3),
            }
        )
        table.add_row(
            name,
            f"{before['pruned']:.1%}",
            "" if name == "dense" else f"{after['pruned']:.1%}",
            f"{totals.retained_params:,}",
            f"{totals.retained_macs:,}",
            f"{density:.3f}",
            f"{1 / density:.2f}x",
            f"{totals.index_bytes:,}",
            f"{bundle.manifest.files['engine.onnx'].bytes:,}",
            f"{engines[name].manifest.files['model.engine'].bytes:,}" if name in engines else "not built",
            f"{timing.median_ms:.2f} ({timing.p10_ms:.2f}..{timing.p90_ms:.2f})",
            f"{latency.speed_up.value:.2f}x",
        )
    report = {"provenance": {**provenance(), "command": "make demo"}, "rows": rows}
    (out / "table.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print()
    console.print(table)
    console.print(
        f"Latency: batch {BATCH}, fp32, CPU, median (p10..p90) of alternating runs. TensorRT-RTX engines are built "
        f"but not timed: that needs an RTX GPU. The demo took {time.perf_counter() - start:.0f} s.",
        soft_wrap=True,
    )
    console.print(f"The whole comparison as a page for the browser: [bold]{out / REPORT}[/]", soft_wrap=True)


if __name__ == "__main__":
    main()
