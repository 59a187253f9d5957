"""A comparison as CSV, with one row per engine and batch size."""

from __future__ import annotations

import csv
import io
from typing import Any

from trtkp.comparison.result import Comparison, Entry, Latency

__all__ = ["csv_text", "rows"]


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one row per engine and batch size. The names say the units; None means unknown."""
    return [_row(entry, latency) for entry in comparison.entries for latency in entry.latencies]


def csv_text(comparison: Comparison) -> str:
    """Return the rows as CSV, with a header line."""
    text = io.StringIO()
    found = rows(comparison)
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def _row(entry: Entry, latency: Latency) -> dict[str, Any]:
    timing, costs, difference, memory = latency.timing, entry.costs, entry.difference, entry.memory
    return {
        "engine": entry.name,
        "kind": entry.kind,
        "backend": entry.backend,
        "precision": entry.precision,
        "threads": entry.threads,
        "batch": latency.batch,
        "runs": timing.runs,
        "median_ms": timing.median_ms,
        "p10_ms": timing.p10_ms,
        "p90_ms": timing.p90_ms,
        "samples_per_s": latency.throughput,
        "speed_up": latency.speed_up.value,
        "speed_up_low": latency.speed_up.low,
        "speed_up_high": latency.speed_up.high,
        "density": costs.density if costs else None,
        "bound": costs.bound if costs else None,
        "params": costs.retained_params if costs else None,
        "macs": costs.retained_macs if costs else None,
        "index_bytes": costs.index_bytes if costs else None,
        "paper_index_bytes": costs.paper_index_bytes if costs else None,
        "engine_bytes": entry.engine_bytes,
        "peak_memory_bytes": memory.peak_bytes if memory else None,
        "max_abs_difference": difference.max_abs if difference else None,
        "relative_difference": difference.relative if difference else None,
        "top1_agreement": difference.top1_agreement if difference else None,
        "accuracy": entry.accuracy,
    }
