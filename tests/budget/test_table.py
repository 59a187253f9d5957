"""The table of the documentation is that of the result file."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.cpu.search import table

ROOT = Path(__file__).parents[2]


def test_the_documented_table_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/results/search.json").read_text())
    assert table(report) in (ROOT / "docs/guides/search.md").read_text()
    assert {row["net"].split()[0] for row in report["rows"]} == {"dense", "searched", "uniform", "channels"}


def test_the_readme_has_these_rows() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = json.loads((ROOT / "benchmarks/results/search.json").read_text())["rows"]
    shown = [row for row in rows if not row["net"].endswith(" 32 x 1")]
    assert len(shown) == 8
    for row in shown:
        cells = f"{row['macs']:.1%} | {row['median_ms']:.2f} | {row['share']:.1%} | {row['accuracy']:.1%} |"
        (line,) = [line for line in readme.splitlines() if line.endswith(cells)]
        ratio = [word for word in row["net"].split() if word.endswith("%")]
        assert all(f"{float(share[:-1]):g} %" in line for share in ratio)
