"""Measure kernels and nets on a GPU, part by part. ``benchmarks/gpu/run.sh`` builds the library and calls this."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: A part that takes longer is stopped, and continued by the next run.
PART_MINUTES = 7.0
# Parts come in order of importance: correctness, speed of layers, whole nets, and last nets by torch.compile, which
# take long to build.
LAYER_NETS, LAYER_BATCHES = ("resnet50", "vgg16"), (32, 256)
NET_NAMES = ("resnet50", "resnet18", "resnet34", "vgg16-cifar", "resnet56-cifar")
PART_NAMES = (
    "checks", "sanitizer", "ceilings", *(f"layers-{net}-{batch}" for batch in LAYER_BATCHES for net in LAYER_NETS),
    *(f"nets-{net}" for net in NET_NAMES), *(f"compiled-{net}" for net in NET_NAMES),
)  # fmt: skip


def main() -> int:
    """Run the parts that are not done. Exit status: 0 all done, 1 a failure, 2 or 3 cannot run, 4 parts are left."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "out/gpu"), help="folder of gpu.json")
    parser.add_argument("--parts", help="parts to run, comma-separated; * at the end of a name matches any rest")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing after this many minutes")
    parser.add_argument("--resume", type=Path, help="continue from this gpu.json instead of the one in the folder")
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda")
    parser.add_argument("--list", action="store_true", help="list the parts and exit")
    options = parser.parse_args()
    if options.list:
        print("\n".join(PART_NAMES))
        return 0
    chosen = _chosen(parser, options.parts)
    try:
        import torch  # noqa: F401
    except ImportError:
        print("this Python has no PyTorch: install PyTorch for CUDA, or choose another Python with PYTHON=")
        return 1
    return _run(chosen, options)


def _chosen(parser: argparse.ArgumentParser, parts: str | None) -> list[str]:
    if parts is None:
        return list(PART_NAMES)
    wanted = [part.strip() for part in parts.split(",")]
    for want in wanted:
        if not any(_named(want, name) for name in PART_NAMES):
            parser.error(f"no part is called {want}; --list names them")
    return [name for name in PART_NAMES if any(_named(want, name) for want in wanted)]


def _named(want: str, name: str) -> bool:
    return name.startswith(want[:-1]) if want.endswith("*") else name == want


def _run(chosen: list[str], options: argparse.Namespace) -> int:
    from benchmarks.gpu.device import describe_machine, open_device
    from benchmarks.gpu.record import Part, Record
    from benchmarks.gpu.report import write_report
    from benchmarks.provenance import provenance
    from trtkp.errors import TrtkpError
    from trtkp.kernels import load_library

    device = open_device(options.device)
    try:
        library = load_library()
    except TrtkpError as error:
        print(error)
        return 1
    if library.emulated != device.emulated:
        print(
            f"{library.path} is{'' if library.emulated else ' not'} emulated: it does not fit --device {options.device}"
        )
        return 2
    if options.resume:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_bytes(options.resume.read_bytes())
    run = (
        provenance() | {"command": f"benchmarks/gpu/run.sh {' '.join(sys.argv[1:])}".strip()} | describe_machine(device)
    )
    run["commit"] = run["commit"] or os.environ.get("TRTKP_COMMIT", "unknown")
    record = Record(options.out / "gpu.json", run)
    end = time.monotonic() + 60 * options.minutes
    left: list[str] = []
    failures = 0
    for name in chosen:
        started = time.monotonic()
        part = Part(record, name, min(end, started + 60 * PART_MINUTES), device.is_usable)
        if part.done:
            print(f"{name}: done already", flush=True)
            failures += len(part.failures)
            continue
        print(f"{name}:", flush=True)
        _parts()[name](part, device)
        part.close()
        state = "done" if part.done else "more is left"
        failed = len(part.failures)
        print(
            f"{name}: {state}, {len(part.items)} items, {failed} failed, {time.monotonic() - started:.0f} s", flush=True
        )
        failures += failed
        left += [] if part.done else [name]
    write_report(record.path)
    print(f"{record.path}; left: {', '.join(left) or 'nothing'}", flush=True)
    return 1 if failures else 4 if left else 0


def _parts() -> dict[str, Callable[[Any, Any], None]]:
    from benchmarks.gpu.checks import check_all, check_sanitizer
    from benchmarks.gpu.layers import measure_ceilings, measure_layers
    from benchmarks.gpu.nets import measure_net

    parts: dict[str, Callable[[Any, Any], None]] = {
        "checks": check_all,
        "sanitizer": check_sanitizer,
        "ceilings": measure_ceilings,
    }
    for batch in LAYER_BATCHES:
        for net in LAYER_NETS:
            parts[f"layers-{net}-{batch}"] = lambda part, device, n=net, b=batch: measure_layers(part, device, n, b)
    for net in NET_NAMES:
        parts[f"nets-{net}"] = lambda part, device, n=net: measure_net(part, device, n, compiled=False)
        parts[f"compiled-{net}"] = lambda part, device, n=net: measure_net(part, device, n, compiled=True)
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
