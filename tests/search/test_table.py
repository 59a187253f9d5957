"""The table of the documentation is that of the result file."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.search import table

ROOT = Path(__file__).parents[2]


def test_the_documented_table_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/results/search.json").read_text())
    assert table(report) in (ROOT / "docs/guides/search.md").read_text()
    assert {row["net"].split()[0] for row in report["rows"]} == {"dense", "searched", "uniform", "channels"}
