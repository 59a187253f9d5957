"""``reference/api.md``: every public name of ``trtkp``, by static analysis; mkdocstrings renders the docstrings."""

from __future__ import annotations

from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[2]
_HEAD = """# Python API

```python
import trtkp
```

Every name below is imported at its first use, so `import trtkp` itself loads neither PyTorch nor an engine's library.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "reference/api.md", content=page()))
    return files


def page() -> str:
    """Functions, then classes, then errors, as `trtkp.__all__` lists them."""
    package = griffe.load("trtkp", search_paths=[str(_ROOT)])
    names = [name for name in package.exports or [] if not str(name).startswith("__")]
    sections: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors": []}
    for name in map(str, names):
        target = package[name].final_target
        kind = "Functions" if target.is_function else "Errors" if name.endswith("Error") else "Classes"
        sections[kind].append(name)
    parts = [_HEAD]
    for title, members in sections.items():
        parts += [f"## {title}", "", *(f"::: trtkp.{name}\n" for name in members)]
    return "\n".join(parts)
