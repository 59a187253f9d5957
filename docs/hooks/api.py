"""``reference/api.md``: every public name of ``trtkp``, by static analysis; mkdocstrings renders the docstrings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import trtkp
from trtkp.settings import Description, describe, nested_settings

_ROOT = Path(__file__).parents[2]
_HEAD = """# Python API

```python
import trtkp
```

Every name below is imported at its first use, so `import trtkp` itself loads neither PyTorch nor an engine's library.

The examples run, as tests, in a folder that holds `net.onnx`, a classifier of images [N, 3, 8, 8] with five classes;
`samples.npz`, 24 such images `x` with labels `y`; and two bundles of the net, `dense` and `kep`. KEP pruned the latter,
with `n=4, share="per-layer"`.
"""

#: Title of each section, and what it is about.
_SECTIONS = {
    "Functions": "What the commands do. A function that takes `progress` calls it with a phase, the steps done and the "
    "steps in all.",
    "Options": "How the functions work. Their defaults are those of the command line; "
    "[the reference of options](options.md) has the same fields as flags.",
    "Methods": "The pruning methods with their settings. `trtkp.build` and `trtkp.prune` take such an object, or a "
    'method\'s name and the same settings: `method="kep", n=4` is `method=trtkp.KEP(n=4)`. '
    "[Add a method](../recipes/method.md) shows how to write one.",
    "Data and results": "What the functions take and return.",
    "Errors": "Everything that trtkp raises on purpose. A message is one line: file, layer, what is wrong, what to do.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "reference/api.md", content=page()))
    return files


def page() -> str:
    """The names of `trtkp.__all__` by section, in its order."""
    parts = [_HEAD]
    for title, names in sections().items():
        parts += [f"## {title}", "", _SECTIONS[title], ""]
        for name in names:
            parts += _settings_class(name) if title in ("Options", "Methods") else [f"::: trtkp.{name}\n"]
    return "\n".join(parts)


def _settings_class(name: str) -> list[str]:
    """A class with its settings as a table, and without the hooks of a method; their base is shown whole."""
    if name == "Method":
        return [f"::: trtkp.{name}\n"]
    owner, described = getattr(trtkp, name), griffe.load("trtkp", search_paths=[str(_ROOT)])[name].final_target
    known = {item.name: _row(item) for item in describe(owner) if item.owner == name}
    nested = nested_settings(owner)
    rows = []
    for field in fields(owner):
        if field.name in known:
            rows.append(known[field.name])
        elif field.name in nested:
            rows.append(f"| `{field.name}` | `{nested[field.name].__name__}` | | |")
        elif known and (text := described.members[field.name].docstring) is not None:
            rows.append(f"| `{field.name}` | | | {' '.join(text.value.split())} |")
    block = [
        f"::: trtkp.{name}",
        "    options:",
        "      members: []",
        f"      show_signature: {str(not rows).lower()}",
        "",
    ]
    return [*block, "| setting | value | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else block


def _row(item: Description) -> str:
    cells = (f"`{item.name}`", f"{item.type} {item.bounds}".strip(), item.default, item.help)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def sections() -> dict[str, list[str]]:
    """Title to the public names of the section; the version belongs to none."""
    package = griffe.load("trtkp", search_paths=[str(_ROOT)])
    found: dict[str, list[str]] = {title: [] for title in _SECTIONS}
    for name in map(str, package.exports or []):
        if not name.startswith("__"):
            found[_section(package[name].final_target)].append(name)
    return found


def _section(target: griffe.Object) -> str:
    """The section of an object, by what it is and where it lives."""
    home = target.canonical_path.rpartition(".")[0]
    if target.is_function:
        return "Functions"
    if target.name.endswith("Error"):
        return "Errors"
    if target.name.endswith("Options") or home == "trtkp.pruning.train.recipe":
        return "Options"
    return "Methods" if home.startswith("trtkp.pruning.method") else "Data and results"
