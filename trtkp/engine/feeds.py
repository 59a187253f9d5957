"""Check inputs and optimisation profiles against what an engine accepts.

The checks run before the library sees the data, because its own messages rarely name the input and the expected shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtkp.cuda.arrays import View
from trtkp.errors import InputError
from trtkp.shapes import Dim, Profile, Shape, ShapeRange, TensorSpec

__all__ = ["check_feeds", "check_profile", "fits", "random_feeds"]


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Check the inputs of one run, and return them as C-contiguous arrays.

    Dimensions with the same name must have the same size in all inputs: ``N`` of two inputs is one batch. A `View` of
    device memory is returned unchanged.

    Args:
        specs: the engine's inputs.
        feeds: an array, or something NumPy turns into one, for every input by name.

    Raises:
        InputError: an input is missing, unknown, or has the wrong dtype, rank or size. The message names the input,
            what was expected, and what was given.

    Example:
        >>> spec = TensorSpec("image", "float32", (Dim("N", 1, 8), 3, 4, 4))
        >>> check_feeds([spec], {"image": np.zeros((2, 3, 4, 4), np.float32)})["image"].shape
        (2, 3, 4, 4)
    """
    names = [spec.name for spec in specs]
    unknown = sorted(set(feeds) - set(names))
    if unknown:
        raise InputError(f"no input named {', '.join(unknown)}; the engine takes {', '.join(names)}")
    sizes: dict[str, tuple[int, str]] = {}
    checked = {}
    for spec in specs:
        if spec.name not in feeds:
            raise InputError(f"input {spec.name} is missing; expected {spec}")
        feed = feeds[spec.name]
        array = feed if isinstance(feed, View) else np.asarray(feed)
        if array.dtype != _dtype(spec) or not fits(spec, array.shape):
            raise InputError(f"input {spec.name}: expected {spec}, got {array.dtype}{list(array.shape)}{_range(spec)}")
        for dim, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(dim, Dim) and dim.name:
                known, first = sizes.setdefault(dim.name, (size, spec.name))
                if known != size:
                    raise InputError(
                        f"input {spec.name}: expected {spec}, got {array.dtype}{list(array.shape)}, "
                        f"but {dim.name} = {known} in input {first}"
                    )
        checked[spec.name] = array if isinstance(array, View) else np.ascontiguousarray(array).reshape(array.shape)
    return checked


def random_feeds(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape], seed: int) -> dict[str, np.ndarray]:
    """Make random inputs: standard normal for floating-point inputs, zeros and ones for integers.

    Args:
        specs: the inputs to make.
        shapes: the shape of each input, by name.
        seed: the same seed gives the same values.
    """
    # Standard normal is the range of normalised images. Integer inputs are usually masks or indices, for which 0 and 1
    # are valid almost everywhere.
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for spec in specs:
        dtype, shape = _dtype(spec), shapes[spec.name]
        values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[spec.name] = np.asarray(values, dtype)
    return feeds


def _dtype(spec: TensorSpec) -> np.dtype:
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        raise InputError(
            f"input {spec}: NumPy has no type {spec.dtype}", remedy="export the model with float32 or float16 inputs"
        ) from None


def _range(spec: TensorSpec) -> str:
    ranges = [
        f"{dim.name} = {dim.minimum}..{dim.maximum}"
        for dim in spec.shape
        if isinstance(dim, Dim) and dim.maximum is not None
    ]
    return f" ({', '.join(ranges)})" if ranges else ""


def fits(spec: TensorSpec, shape: Shape) -> bool:
    """Whether an input accepts this shape: same rank, same fixed sizes, dynamic sizes within their limits."""
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
    """Check an optimisation profile against the graph's inputs.

    Raises:
        InputError: a dynamic input has no shapes, the profile names an unknown input, or a shape does not fit.
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


def split_profile(profile: Profile, batches: Sequence[int]) -> list[Profile]:
    """Split a profile by batch size into one for each size to tune for.

    Args:
        profile: shapes of every input. The batch is the first dimension of every input in which it varies.
        batches: sizes to tune for; the largest of the profile is added. None leaves the profile whole.

    Returns:
        Profiles in the order of their sizes. Each is tuned for its largest batch, and serves those down to the size
        after that of the profile before it.

    Raises:
        InputError: a size is outside the profile, or the inputs do not have one batch in common.

    Example:
        >>> from trtkp.shapes import ShapeRange
        >>> parts = split_profile({"x": ShapeRange((1, 3), (2, 3), (64, 3))}, [8, 1])
        >>> [tuple(shape[0] for shape in part["x"].shapes()) for part in parts]
        [(1, 1, 1), (2, 8, 8), (9, 64, 64)]
    """
    if not batches:
        return [profile]
    ranges = {(shapes.min[0], shapes.max[0]) for shapes in profile.values() if shapes.min[:1] != shapes.max[:1]}
    if len(ranges) != 1:
        found = "several" if ranges else "no"
        raise InputError(f"--tune-batches: the inputs have {found} ranges of batch sizes", remedy="leave it out")
    ((low, high),) = ranges
    wrong = [size for size in batches if not low <= size <= high]
    if wrong:
        raise InputError(
            f"--tune-batches {wrong[0]}: the batch goes from {low} to {high}", remedy="see --min and --max"
        )
    parts: list[Profile] = []
    first = low
    for size in sorted({*batches, high}):
        parts.append(
            {
                name: shapes
                if shapes.min[:1] == shapes.max[:1]
                else ShapeRange(
                    *((n, *shape[1:]) for n, shape in zip((first, size, size), shapes.shapes(), strict=True))
                )
                for name, shapes in profile.items()
            }
        )
        first = size + 1
    return parts
