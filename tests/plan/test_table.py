"""The table of the documentation is that of the result file, and the promises hold in it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.cpu.packing import table

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "benchmarks/results/packing.json").read_text())


def test_the_documented_table_is_the_measured_one() -> None:
    assert table(REPORT) in (ROOT / "docs/methods/performance.md").read_text()


def test_no_measured_plan_is_slower_than_dense() -> None:
    planned = [
        row
        for part in REPORT["parts"].values()
        for row in part["rows"]
        if "gather" not in row["variant"]  # forms that were asked for
    ]
    assert len(planned) > 50
    assert min(row["speed_up"] for row in planned) >= 0.97
