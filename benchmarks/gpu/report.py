"""Make tables and a plot from ``gpu.json``, with the standard library alone.

python -m benchmarks.gpu.report out/gpu/gpu.json     # writes gpu.md and gpu.svg beside it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.scatter import Axis, scatter

__all__ = ["markdown", "plot", "write_report"]


def write_report(path: Path) -> None:
    """Write ``gpu.md`` and ``gpu.svg`` beside a result file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(markdown(document), encoding="utf-8")
    path.with_suffix(".svg").write_text(plot(document), encoding="utf-8")


def markdown(document: dict[str, Any]) -> str:
    """The report: provenance, checks, ceilings, layers by granularity, nets."""
    run = document["runs"][-1]
    lines = [f"# {run['gpu']}", ""]
    if "note" in run:
        lines += [f"**{run['note']}**", ""]
    shown = ("date", "commit", "driver, clocks, power", "cuda", "cudnn", "torch", "command")
    lines += [f"- {key}: {run[key]}" for key in shown if key in run]
    parts = document["parts"]
    lines += _checks(parts) + _ceilings(parts) + _layers(parts) + _predictions(parts) + _nets(parts)
    failed = [f"{name}: {key}: {item['failed']}" for name, part in parts.items() for key, item in part["items"].items()
              if "failed" in item]  # fmt: skip
    lines += ["", "## Failed", "", *(f"- {line}" for line in failed)] if failed else []
    return "\n".join(lines) + "\n"


def _checks(parts: dict[str, Any]) -> list[str]:
    found: dict[str, tuple[int, float]] = {}
    failures: list[str] = []
    for item in parts.get("checks", {}).get("items", {}).values():
        failures += item.get("failures", [])
        for tactic, row in item.get("tactics", {}).items():
            cases, worst = found.get(tactic, (0, 0.0))
            found[tactic] = cases + row["cases"], max(worst, row["worst"])
    if not found:
        return []
    rows = [f"| {tactic} | {cases} | {worst:.1e} |" for tactic, (cases, worst) in found.items()]
    head = ["", "## Checks against float64", "", "| tactic | cases | worst relative error |", "|---|---|---|"]
    return [*head, *rows, "", f"{len(failures)} failures.", *(f"- {line}" for line in failures)]


def _ceilings(parts: dict[str, Any]) -> list[str]:
    items = {k: v for k, v in parts.get("ceilings", {}).get("items", {}).items() if "failed" not in v}
    rates = [f"- {name}: {item.get('bytes_per_s', item.get('flops_per_s', 0)) / 1e12:.2f} "
             f"T{'B' if 'bytes_per_s' in item else 'FLOP'}/s" for name, item in items.items()]  # fmt: skip
    return ["", "## Ceilings", "", *rates] if rates else []


def _timed(part: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Shape, granularity and item of each layer that was timed against cuDNN."""
    return [
        (*key.split(" | ", 1), item)  # type: ignore[misc]
        for key, item in part["items"].items()
        if item.get("speed_up")
    ]


def _layers(parts: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, part in parts.items():
        timed = _timed(part) if name.startswith("layers-") else []
        if not timed:
            continue
        head = "| granularity | shapes | density | speed-up over cuDNN: geometric mean | least | most | of 1/density |"
        lines += ["", f"## {name}", "", head, "|---|---|---|---|---|---|---|"]
        for granularity in dict.fromkeys(granularity for _, granularity, _ in timed):
            items = [item for _, other, item in timed if other == granularity]
            speeds = [item["speed_up"] for item in items]
            density = sum(item["density"] for item in items) / len(items)
            mean = geometric_mean(speeds)
            lines.append(f"| {granularity} | {len(items)} | {density:.2f} | {mean:.2f} | {min(speeds):.2f} "
                         f"| {max(speeds):.2f} | {mean * density:.0%} |")  # fmt: skip
        head = "| shape | cuDNN, µs | granularity | tactic | µs | speed-up | TFLOP/s | bound (model) |"
        lines += ["", head, "|---|---|---|---|---|---|---|---|"]
        for shape, granularity, item in timed:
            dense = item["speed_up"] * item["median_us"]
            rate = item["flops_per_s"] / 1e12
            cells = (shape, f"{dense:.1f}", granularity, item["tactic"], f"{item['median_us']:.1f}")
            lines.append(f"| {' | '.join(cells)} | {item['speed_up']:.2f} | {rate:.1f} | {item['bound']} |")
    return lines


def _predictions(parts: dict[str, Any]) -> list[str]:
    """Measured time over predicted time, by tactic and by the bound that the tactic model names."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for name, part in parts.items():
        for _, _, item in _timed(part) if name.startswith("layers-") else []:
            for tactic, row in item["tactics"].items():
                if row["predicted_us"]:
                    ratios.setdefault((tactic, row["bound"]), []).append(row["us"] / row["predicted_us"])
    rows = [f"| {tactic} | {bound} | {len(found)} | {geometric_mean(found):.2f} | {min(found):.2f} | {max(found):.2f} |"
            for (tactic, bound), found in sorted(ratios.items())]  # fmt: skip
    head = ["", "## Measured over predicted", "", "| tactic | bound | times | geometric mean | least | most |"]
    return [*head, "|---|---|---|---|---|---|", *rows] if rows else []


def _nets(parts: dict[str, Any]) -> list[str]:
    rows = []
    for name, part in parts.items():
        if not name.startswith("nets-"):
            continue
        net = name.removeprefix("nets-")
        compiled = parts.get(f"compiled-{net}", {}).get("items", {})
        items = part["items"] | compiled
        for key, item in items.items():
            batch, variant = key.split(" | ", 1)
            dense = items.get(f"{batch} | dense", {})
            if "graph" not in item or "graph" not in dense:
                continue
            cells = [f"{item[how]['median_us'] / 1e3:.3f} ({dense[how]['median_us'] / item[how]['median_us']:.2f})"
                     for how in ("eager", "graph")]  # fmt: skip
            packed = f"{item['layers_packed']} of {item['layers_pruned']}" if "layers_packed" in item else "-"
            left = f"{item['macs_left']:.0%}" if "macs_left" in item else "100%"
            rows.append(f"| {net} | {batch} | {variant} | {left} | {packed} | {' | '.join(cells)} |")
    head = (
        "| net | batch | variant | MACs left | layers packed | eager, ms (over dense) | graph replay, ms (over dense) |"
    )
    return ["", "## Nets", "", head, "|---|---|---|---|---|---|---|", *rows] if rows else []


def plot(document: dict[str, Any]) -> str:
    """Plot speed-up over cuDNN against density: a point per layer, a colour per granularity, and the line 1/density."""
    points: dict[str, list[tuple[float, float]]] = {}
    for name, part in document["parts"].items():
        for _, granularity, item in _timed(part) if name.startswith("layers-") else []:
            points.setdefault(granularity.rsplit(", ", 1)[0], []).append((item["density"], item["speed_up"]))
    top = max([4.2, *(speed for found in points.values() for _, speed in found)])
    run = document["runs"][-1]
    return scatter(
        f"Speed-up over dense cuDNN, {run['gpu']}{' (meaningless)' if 'note' in run else ''}", points,
        Axis(0, 1, (0.25, 0.5, 0.75, 1.0)), Axis(0, top, range(int(top) + 1)),
        [(percent / 100, 100 / percent) for percent in range(100, int(100 / top), -2)],
    )  # fmt: skip


if __name__ == "__main__":
    write_report(Path(sys.argv[1]))
