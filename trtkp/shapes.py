"""Input shapes: fixed and dynamic dimensions, and the optimisation profile (min, opt, max) of every input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from trtkp.errors import InputError

__all__ = [
    "DEFAULT_BATCH",
    "MOST_ELEMENTS",
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

#: Batch sizes (min, opt, max) of a profile when neither the user nor the model's export gives a range.
DEFAULT_BATCH = (1, 8, 64)

#: Values that an input may have: TensorRT counts them in signed 32-bit numbers.
MOST_ELEMENTS = 2**31 - 1

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Dim:
    """A dynamic dimension, with the range that the model's export promised; ``maximum`` is None without a limit."""

    name: str
    minimum: int = 1
    maximum: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype name and shape of a graph input or output.

    Example:
        >>> print(TensorSpec("image", "float32", (Dim("batch"), 3, 224, 224)))
        image float32[batch, 3, 224, 224]
    """

    name: str
    dtype: str
    shape: tuple[int | Dim, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(d.name if isinstance(d, Dim) else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class ShapeRange:
    """The smallest, the most usual and the largest shape of one input."""

    min: Shape
    opt: Shape
    max: Shape

    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """``(min, opt, max)``, in that order."""
        return self.min, self.opt, self.max


#: Input name to shape range.
Profile: TypeAlias = dict[str, ShapeRange]


def parse_shape_options(values: Sequence[str], specs: Sequence[TensorSpec], option: str) -> dict[str, Shape]:
    """The values of a shape option as a mapping from input name to shape.

    Args:
        values: such as ``["1x3x224x224"]`` or ``["image:1x3x224x224", "mask:1x1x224x224"]``.
        specs: the inputs of the model.
        option: name of the option, for error messages.

    Raises:
        InputError: a value is not a shape, names an unknown input, or names none although the model has several.

    Example:
        >>> parse_shape_options(["1x3x32x32"], [TensorSpec("image", "float32", ())], "--input-shape")
        {'image': (1, 3, 32, 32)}
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
    """The optimisation profile of a model.

    Each dynamic dimension takes the sizes that the user gave, or else the range of the model's export. The batch, which
    is a dynamic first dimension, otherwise gets `DEFAULT_BATCH`.

    Args:
        specs: the inputs of the model.
        minimum: smallest shape by input name, if given.
        optimum: most usual shape by input name, if given.
        maximum: largest shape by input name, if given.

    Raises:
        InputError: a shape that the model does not take, a usual shape of more than `MOST_ELEMENTS` values, min > opt
            or opt > max, or a dynamic dimension without a range, neither from the export nor from the user.

    Example:
        >>> profile = make_profile([TensorSpec("image", "float32", (Dim("batch"), 3, 32, 32))])
        >>> profile["image"].shapes()
        ((1, 3, 32, 32), (8, 3, 32, 32), (64, 3, 32, 32))
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
        if prod(opt) > MOST_ELEMENTS:  # the shape that is run; that of --max is for TensorRT's builder alone
            raise InputError(
                f"shape {'x'.join(map(str, opt))} has {prod(opt):,} values, an input may have {MOST_ELEMENTS:,}",
                layer=spec.name,
                remedy="give a smaller --opt or --input-shape",
            )
    return profile


def profile_from_options(
    specs: Sequence[TensorSpec],
    minimum: Sequence[str] = (),
    optimum: Sequence[str] = (),
    maximum: Sequence[str] = (),
    *,
    input_shape: Sequence[str] = (),
) -> Profile:
    """The profile from ``--min``, ``--opt`` and ``--max``, or from ``--input-shape`` if none of those is given.

    ``--input-shape`` fixes all dimensions except a dynamic batch, which keeps its range.

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
    """Shapes of the quickest run that shows the sizes of one sample: the usual shapes at the smallest batch.

    Inputs with a dynamic first dimension come first, because they say most surely which dimension is the batch.
    """
    dynamic = [spec.name for spec in specs if spec.shape and not isinstance(spec.shape[0], int)]
    return {
        name: (*profile[name].min[:1], *profile[name].opt[1:])
        for name in sorted(profile, key=lambda name: name not in dynamic)
    }


def _sizes_by_name(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Size of each dynamic dimension. A name has one size, whichever inputs it appears in."""
    sizes: dict[str, int] = {}
    for spec in specs:
        shape = shapes.get(spec.name)
        if shape is None:
            continue
        _check_fits(spec, shape)
        for size, dim in zip(shape, spec.shape, strict=True):
            if isinstance(dim, Dim) and sizes.setdefault(dim.name, size) != size:
                raise InputError(
                    f"{dim.name} is {size} here and {sizes[dim.name]} in an earlier input", layer=spec.name,
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
    # What was not given: the default batch within the export's limits, the export's own range, or the given sizes.
    if axis == 0:
        floor, usual, ceiling = DEFAULT_BATCH
        floor = max(floor, dim.minimum)
        ceiling = max(dim.maximum if dim.maximum is not None else ceiling, floor)
    elif dim.maximum is not None:
        floor, usual, ceiling = max(1, dim.minimum), dim.maximum, dim.maximum
    else:
        # No limit from the export, and no default would be a good guess for a height or a width.
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
