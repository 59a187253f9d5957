"""The table of the documentation is that of the result file."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.cpu.int8 import table

ROOT = Path(__file__).parents[2]


def test_the_documented_table_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/results/int8.json").read_text())
    assert table(report) in (ROOT / "docs/guides/calibrate.md").read_text()
