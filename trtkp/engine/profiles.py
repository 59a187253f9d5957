"""Shapes held against the inputs of a graph; without NumPy, because the build worker uses it too."""

from __future__ import annotations

from collections.abc import Sequence

from trtkp.errors import InputError
from trtkp.shapes import Dim, Profile, Shape, TensorSpec

__all__ = ["check_profile", "fits"]


def fits(spec: TensorSpec, shape: Shape) -> bool:
    """Whether an input takes this shape."""
    if len(shape) != len(spec.shape):
        return False
    for dim, size in zip(spec.shape, shape, strict=True):
        if not isinstance(dim, Dim):
            if size != dim:
                return False
        elif size < dim.minimum or (dim.maximum is not None and size > dim.maximum):
            return False
    return True


def check_profile(specs: Sequence[TensorSpec], profile: Profile) -> None:
    """Hold an optimisation profile against the graph's inputs.

    Raises:
        InputError: an input without a range, a range without an input, or shapes that the input does not take.
    """
    names = [spec.name for spec in specs]
    unknown = sorted(set(profile) - set(names))
    if unknown:
        raise InputError(f"profile: no input named {', '.join(unknown)}; the graph has {', '.join(names)}")
    for spec in specs:
        if spec.name not in profile:
            if any(isinstance(dim, Dim) for dim in spec.shape):
                raise InputError(f"profile: no shapes for the dynamic input {spec}")
            continue
        for shape in profile[spec.name].shapes():
            if not fits(spec, shape):
                raise InputError(f"profile: shape {'x'.join(map(str, shape))} does not fit the input {spec}")
