"""The notebook runs from top to bottom, and gives the outputs that it is stored with where those are not times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quick_tour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), namespace)  # noqa: S102  # our own notebook
            printed.append((capsys.readouterr().out, cell["outputs"]))
    assert namespace["report"].ok
    dense, pruned = (bundle.manifest.accuracy["pruned"] for bundle in (namespace["dense"], namespace["pruned"]))
    assert dense > 0.9
    assert pruned > dense - 0.03
    for text, stored in printed:
        for output in stored:
            # the last digits of an accuracy depend on the CPU, which lines there are does not
            labels = [line.split()[0] for line in output["text"]]
            assert [line.split()[0] for line in text.splitlines()] == labels
    assert "kep: batch 32" in printed[-2][0]
