"""Measure build time, peak memory and engine size of whole nets through the command line, and latency on the CPU.

    python -m benchmarks.cpu.build_nets --json benchmarks/results/build_nets.json

Nets of ``examples/nets`` have random weights and a dynamic batch of 1 to 64, and are saved as ``.pt2``. Each is built
three times for TensorRT-RTX in fp16 and verified: dense, by KEP with separate positions in every kernel, and by KEP
with one set of positions per layer. ResNet-50 is also built for ONNX Runtime in fp32, there by V-SKP with shared lists
too, and these bundles are timed in turn. Seconds are wall-clock time of the process. Memory is the peak of the resident
memory of the process and its children together, sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.provenance import provenance
from examples.nets import export
from examples.nets.dense import dense_net_like
from examples.nets.mobile import mobile_net_like
from examples.nets.resnet import resnet50
from examples.nets.unet import unet

NETS = {
    "resnet50": (resnet50, (3, 224, 224)),
    "mobile_net_like": (mobile_net_like, (3, 96, 96)),
    "dense_net_like": (dense_net_like, (3, 64, 64)),
    "unet": (unet, (3, 64, 64)),
}
VARIANTS = {
    "dense": ["--method", "none"],
    "kep n=4": ["--method", "kep", "--n", "4"],
    "kep n=4 per-layer": ["--method", "kep", "--n", "4", "--share", "per-layer"],
}
#: Also timed for ResNet-50: lists that groups of filters share.
GROUPED = {
    "vskp 60 %, 256 filters a list": [
        "--method", "vskp", "--ratio", "0.6", "--allocation", "uniform", "--filter-group", "256",
    ],
}  # fmt: skip


def trtkp(*arguments: str) -> tuple[dict[str, Any], float, float]:
    """Run a trtkp command. Gives its JSON document, its seconds and its peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "trtkp", *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    return json.loads(output), seconds, peak[0] / 2**20


def _watch(pid: int, peak: list[int]) -> None:
    try:
        main = psutil.Process(pid)
        while main.is_running() and main.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in [main, *main.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)
            time.sleep(0.02)
    except psutil.Error:
        return


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"provenance": provenance(), "builds": [], "latency": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, (factory, shape) in NETS.items():
            torch.manual_seed(0)
            model = Path(folder) / f"{name}.pt2"
            torch.export.save(export(factory().eval(), shape), model)
            for variant, flags in VARIANTS.items():
                report["builds"].append(_build(folder, name, variant, flags, model))
        report["latency"] = _latency(folder)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _build(folder: str, name: str, variant: str, flags: list[str], model: Path) -> dict[str, Any]:
    bundle = str(Path(folder) / f"{name}-{variant.replace(' ', '-')}")
    manifest, seconds, peak = trtkp(
        "build", str(model), *flags, "--backend", "tensorrt-rtx", "--precision", "fp16", "-o", bundle
    )
    verified, verify_seconds, _ = trtkp("verify", bundle)
    totals = manifest["totals"]
    row = {
        "net": name,
        "variant": variant,
        "seconds": round(seconds, 2),
        "phases": manifest["seconds"],
        "peak_mib": round(peak),
        "engine_bytes": manifest["files"]["model.engine"]["bytes"],
        "density": round(totals["retained_macs"] / totals["dense_macs"], 4),
        "params": totals["retained_params"],
        "verify": {check["artefact"]: check["status"] for check in verified["checks"]},
        "verify_seconds": round(verify_seconds, 2),
    }
    print(f"{name:16} {variant:18} {seconds:5.1f} s {peak:6.0f} MiB {row['engine_bytes']:>11,} B  {row['verify']}")
    return row


def _latency(folder: str) -> list[dict[str, Any]]:
    """Time the variants of ResNet-50 in turn in ONNX Runtime, at batch 1 and 8."""
    model = str(Path(folder) / "resnet50.pt2")
    bundles: dict[str, str] = {}
    densities: dict[str, float] = {}
    for variant, flags in (VARIANTS | GROUPED).items():
        bundles[variant] = str(Path(folder) / f"ort-{len(bundles)}")
        manifest, _, _ = trtkp("build", model, *flags, "--backend", "onnxruntime", "-o", bundles[variant])
        totals = manifest["totals"]
        densities[variant] = round(totals["retained_macs"] / totals["dense_macs"], 4)
    rows = []
    for batch in (1, 8):
        results, _, _ = trtkp("bench", *bundles.values(), "--batch", str(batch), "--seconds", "60", "--runs", "40")
        base = results["results"][0]["timing"]["median_ms"]
        for variant, result in zip(bundles, results["results"], strict=True):
            row = {
                "net": "resnet50",
                "variant": variant,
                "backend": "onnxruntime",
                "precision": "fp32",
                "batch": batch,
                "threads": result["threads"],
                **result["timing"],
                "speed_up": round(base / result["timing"]["median_ms"], 3),
                "density": densities[variant],
            }
            rows.append(row)
            print(f"{variant:18} batch {batch}  {row['median_ms']:8.2f} ms  {row['speed_up']:.2f}x")
    return rows


if __name__ == "__main__":
    main()
