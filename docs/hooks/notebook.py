"""``start/tour.md``: the notebook of `examples/` as a page, with the outputs that it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quick_tour.ipynb"
_NOTE = "\nThis page is the notebook [`examples/quick_tour.ipynb`](../../examples/quick_tour.ipynb).\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "start/tour.md", content=page()))
    return files


def page() -> str:
    """Text cells as they are, code cells as code, what they printed below."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(cells[0]["source"]), _NOTE]
    for cell in cells[1:]:
        source = "".join(cell["source"])
        parts += [source] if cell["cell_type"] == "markdown" else [f"```python\n{source}\n```", *_outputs(cell)]
    return "\n\n".join(parts) + "\n"


def _outputs(cell: dict[str, Any]) -> list[str]:
    texts = ["".join(output.get("text", "")) for output in cell["outputs"]]
    return [f"```text\n{text.rstrip()}\n```" for text in texts if text]
