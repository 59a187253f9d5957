"""Input shapes: fixed or dynamic dimensions, and the optimisation profile (min, opt, max) of every input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from trtkp.errors import InputError

__all__ = [
    "DEFAULT_BATCH",
    "Dim",
    "Profile",
    "Shape",
    "ShapeRange",
    "TensorSpec",
    "make_profile",
    "parse_shape_options",
    "profile_from_options",
    "smallest_samples",
]

#: Batch sizes (min, opt, max) of a profile when the model gives no range.
DEFAULT_BATCH = (1, 8, 64)

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Dim:
    """A dynamic dimension and the range its export promised (``maximum`` None: no limit known)."""

    name: str
    minimum: int = 1
    maximum: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype name and shape of a graph input or output."""

    name: str
    dtype: str
    shape: tuple[int | Dim, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(d.name if isinstance(d, Dim) else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class ShapeRange:
    """One input's smallest, most usual and largest shape."""

    min: Shape
    opt: Shape
    max: Shape

    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """``(min, opt, max)``, in that order."""
        return self.min, self.opt, self.max


#: Input name to shape range.
Profile: TypeAlias = dict[str, ShapeRange]


def parse_shape_options(values: Sequence[str], specs: Sequence[TensorSpec], option: str) -> dict[str, Shape]:
    """``["1x3x224x224"]`` or ``["image:1x3x224x224", ...]`` as a mapping from input name to shape.

    Raises:
        InputError: not a shape, an unknown input, or no name although the model has several inputs.
    """
    shapes: dict[str, Shape] = {}
    names = [spec.name for spec in specs]
    for value in values:
        name, _, text = value.rpartition(":")
        if not name:
            if len(names) != 1:
                raise InputError(
                    f"{option} {value}: the model has {len(names)} inputs ({', '.join(names)})",
                    remedy=f"name the input, as in {option} {names[0] if names else 'x'}:{text}",
                )
            name = names[0]
        if name not in names:
            raise InputError(f"{option} {value}: no input of that name; the model has {', '.join(names)}")
        try:
            shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
        except ValueError:
            raise InputError(f"{option} {value}: not a shape", remedy="write it as 1x3x224x224") from None
        if min(shape) < 1:
            raise InputError(f"{option} {value}: every dimension must be at least 1")
        shapes[name] = shape
    return shapes


def make_profile(
    specs: Sequence[TensorSpec],
    minimum: Mapping[str, Shape] | None = None,
    optimum: Mapping[str, Shape] | None = None,
    maximum: Mapping[str, Shape] | None = None,
) -> Profile:
    """The optimisation profile of a model: what the user gave, else the export's ranges, else batch 1 / 8 / 64.

    A dynamic first dimension is the batch. Given shapes are held against the model's own.

    Raises:
        InputError: a shape that the model does not take, min > opt or opt > max, or a dynamic dimension
            with neither a range in the export nor a shape from the user.
    """
    given = [_sizes_by_name(specs, option or {}) for option in (minimum, optimum, maximum)]
    profile: Profile = {}
    for spec in specs:
        columns = [
            _range_of(spec, axis, dim, [sizes.get(dim.name) if isinstance(dim, Dim) else None for sizes in given])
            for axis, dim in enumerate(spec.shape)
        ]
        low, opt, high = (tuple(column[i] for column in columns) for i in range(3))
        profile[spec.name] = ShapeRange(low, opt, high)
    return profile


def profile_from_options(
    specs: Sequence[TensorSpec],
    minimum: Sequence[str] = (),
    optimum: Sequence[str] = (),
    maximum: Sequence[str] = (),
    *,
    input_shape: Sequence[str] = (),
) -> Profile:
    """The profile from ``--min``, ``--opt``, ``--max``, or ``--input-shape`` where none of them is given.

    ``--input-shape`` fixes all dimensions but a dynamic batch, which keeps its range.

    Raises:
        InputError: see `parse_shape_options` and `make_profile`.
    """
    low, usual, high = (
        parse_shape_options(values, specs, flag)
        for values, flag in ((minimum, "--min"), (optimum, "--opt"), (maximum, "--max"))
    )
    if input_shape and not (low or usual or high):
        shapes = parse_shape_options(input_shape, specs, "--input-shape")
        usual = {
            spec.name: shapes[spec.name]
            for spec in specs
            if spec.name in shapes and spec.shape and not isinstance(spec.shape[0], int)
        }
    return make_profile(specs, low, usual, high)


def smallest_samples(specs: Sequence[TensorSpec], profile: Profile) -> dict[str, Shape]:
    """Shapes of the quickest run that tells sizes per sample: the usual ones, at the smallest batch.

    An input whose first dimension is dynamic says more surely what the batch is, so it comes first.
    """
    dynamic = [spec.name for spec in specs if spec.shape and not isinstance(spec.shape[0], int)]
    return {
        name: (*profile[name].min[:1], *profile[name].opt[1:])
        for name in sorted(profile, key=lambda name: name not in dynamic)
    }


def _sizes_by_name(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Sizes of dynamic dimensions; one name has one size, whichever inputs it is in."""
    sizes: dict[str, int] = {}
    for spec in specs:
        shape = shapes.get(spec.name)
        if shape is None:
            continue
        _check_fits(spec, shape)
        for size, dim in zip(shape, spec.shape, strict=True):
            if isinstance(dim, Dim) and sizes.setdefault(dim.name, size) != size:
                raise InputError(
                    f"{dim.name} is {size} here and {sizes[dim.name]} before it", layer=spec.name,
                    remedy=f"give {dim.name} one size",
                )  # fmt: skip
    return sizes


def _check_fits(spec: TensorSpec, shape: Shape) -> None:
    text = "x".join(map(str, shape))
    if len(shape) != len(spec.shape):
        raise InputError(f"shape {text} has {len(shape)} dimensions, the input is {spec}", layer=spec.name)
    for size, dim in zip(shape, spec.shape, strict=True):
        if isinstance(dim, Dim):
            high = dim.maximum if dim.maximum is not None else size
            if not dim.minimum <= size <= high:
                limit = f"{dim.minimum}..{dim.maximum if dim.maximum is not None else ''}"
                raise InputError(f"shape {text}: {dim.name} = {size} is outside {limit} of the export", layer=spec.name)
        elif size != dim:
            raise InputError(
                f"shape {text} does not fit the input {spec}",
                layer=spec.name,
                remedy="export the model with a dynamic dimension, or give the shape it was exported with",
            )


def _range_of(spec: TensorSpec, axis: int, dim: int | Dim, given: list[int | None]) -> tuple[int, int, int]:
    if isinstance(dim, int):
        return dim, dim, dim
    low, opt, high = given
    if axis == 0:
        floor, usual, ceiling = DEFAULT_BATCH
        floor = max(floor, dim.minimum)
        ceiling = max(dim.maximum if dim.maximum is not None else ceiling, floor)
    elif dim.maximum is not None:
        floor, usual, ceiling = max(1, dim.minimum), dim.maximum, dim.maximum
    else:
        known = [g for g in given if g is not None]
        if not known:
            raise InputError(
                f"dimension {axis} ({dim.name}) is dynamic and its range is not known",
                layer=str(spec),
                remedy="give --min, --opt and --max, or --input-shape",
            )
        floor, usual, ceiling = min(known), opt if opt is not None else max(known), max(known)
    if high is None:
        high = max(ceiling, *(g for g in (low, opt) if g is not None), 1) if dim.maximum is None else ceiling
    if low is None:
        low = min(floor, opt if opt is not None else high, high)
    if opt is None:
        opt = min(max(usual, low), high)
    if not low <= opt <= high:
        raise InputError(
            f"dimension {axis} ({dim.name}): min {low}, opt {opt}, max {high}",
            layer=spec.name,
            remedy="give shapes with min <= opt <= max",
        )
    return low, opt, high
