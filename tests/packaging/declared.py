"""The libraries that `dependencies` in pyproject.toml brings, and no other, in a folder of links."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def declared() -> list[str]:
    """The requirements that every installation has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that pip would install for these requirements, among those of this environment."""
    found: dict[str, Distribution] = {}
    todo, seen = [Requirement(line) for line in requirements], set[tuple[str, str]]()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # what a library asks for and this environment was made without: nothing to link
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                todo += _asked_by(found[name], extra)
    return found


def _asked_by(library: Distribution, extra: str) -> Iterator[Requirement]:
    for requirement in map(Requirement, library.requires or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def link_libraries(folder: Path, requirements: Iterable[str]) -> None:
    """Link the packages and modules of these requirements' distributions into a folder."""
    for library in closure(requirements).values():
        for top in {file.parts[0] for file in library.files or []} - {"..", "__pycache__"}:
            source, link = Path(str(library.locate_file(top))), folder / top
            if source.exists() and not link.exists():
                link.symlink_to(source.resolve())
