"""Extension of griffe: signatures of the public functions without the descriptions that their types carry.

A parameter of type ``Annotated[int, Setting("Timed rounds.")]``, or of an alias of such a type, is shown as an ``int``.
"""

from __future__ import annotations

from typing import Any

import griffe


class PlainTypes(griffe.Extension):
    """Takes ``Annotated`` from the parameters of every function that the package exports."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Called once the package is read."""
        for name in map(str, pkg.exports or []):
            target = pkg[name]
            if target.is_function:
                for parameter in target.parameters:
                    parameter.annotation = _plain(parameter.annotation, loader)


def _plain(annotation: Any, loader: griffe.GriffeLoader) -> Any:
    if isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_path == "typing.Annotated":
        inner = annotation.slice
        return inner.elements[0] if isinstance(inner, griffe.ExprTuple) else inner
    if isinstance(annotation, griffe.ExprName) and annotation.canonical_path.startswith("trtkp."):
        alias = loader.modules_collection[annotation.canonical_path]
        if alias.is_attribute and isinstance(alias.value, griffe.ExprSubscript):
            plain = _plain(alias.value, loader)
            return annotation if plain is alias.value else plain
    return annotation
