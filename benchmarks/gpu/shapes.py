"""The layers to time: all 3x3 and 1x1 layer shapes of ResNet-50 and VGG-16 at 224 x 224, and granularities of lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DENSITIES", "SHAPES", "Granularity", "Shape", "granularities"]

DENSITIES = (0.5, 0.35, 0.25)


@dataclass(frozen=True)
class Shape:
    """A convolution of an input of ``size`` squared: C channels, F filters, square kernel, "same" padding."""

    channels: int
    filters: int
    kernel: int
    size: int
    stride: int = 1

    @property
    def name(self) -> str:
        """The shape in words, such as ``3x3 256-256 @14``: kernel, channels, filters, input size."""
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel} {self.channels}-{self.filters} @{self.size}{stride}"

    @property
    def output(self) -> int:
        """Height and width of the output."""
        return -(-self.size // self.stride)

    def macs(self, batch: int) -> int:
        """Multiply-accumulates of the dense layer."""
        return batch * self.output**2 * self.filters * self.channels * self.kernel**2


def _resnet50() -> list[Shape]:
    shapes = []
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        size, stride = 56 >> max(0, stage - 1), 1 if stage == 0 else 2
        after = -(-size // stride)
        shapes += [
            Shape(inputs, width, 1, size), Shape(width, width, 3, size, stride), Shape(width, 4 * width, 1, after),
            Shape(inputs, 4 * width, 1, size, stride), Shape(4 * width, width, 1, after), Shape(width, width, 3, after),
        ]  # fmt: skip
        inputs = 4 * width
    return list(dict.fromkeys(shapes))


def _vgg16() -> list[Shape]:
    stages = ((64, 64, 224), (64, 128, 112), (128, 256, 56), (256, 512, 28), (512, 512, 14))
    shapes = [Shape(c, f, 3, size) for before, f, size in stages for c in (before, f)]
    return list(dict.fromkeys(shapes))


SHAPES = {"resnet50": _resnet50(), "vgg16": _vgg16(), "tiny": [Shape(32, 64, 3, 5), Shape(64, 32, 1, 4, 2)]}


@dataclass(frozen=True)
class Granularity:
    """Which weights are kept together, and how many.

    Attributes:
        kind: ``blocks``, ``single``, ``2:4`` or ``one-filter`` for lists of channels, ``stripe`` for lists of taps.
        density: share of the blocks of channels, or of the taps, that a list keeps.
        group: filters that share a list; 0 for all.
        block: consecutive channels that are kept or removed together.
    """

    kind: str
    density: float
    group: int = 0
    block: int = 1

    @property
    def name(self) -> str:
        """The granularity in words, also its key in result files, such as ``blocks of 8, groups of 64, 0.35``."""
        if self.kind == "stripe":
            return f"stripe, {self.density}"
        if self.kind == "one-filter":
            return f"one filter a list, {self.density}"
        inside = " with 2:4" if self.kind == "2:4" else ""
        return f"blocks of {self.block}, groups of {self.group}{inside}, {self.density}"

    def mask(self, shape: Shape, rng: np.random.Generator) -> npt.NDArray[np.bool_] | None:
        """A random mask, bool [F, C, R, S]; None for stripes of a one-tap kernel, unless all stay."""
        filters, channels, taps = shape.filters, shape.channels, shape.kernel**2
        mask = np.zeros((filters, channels, taps), bool)
        group = min(self.group or filters, filters)
        if self.kind == "stripe":
            if taps == 1:
                return np.ones((filters, channels, 1, 1), bool) if self.density == 1 else None
            for first in range(0, filters, group):
                mask[first : first + group, :, rng.permutation(taps)[: max(1, round(self.density * taps))]] = True
        else:
            blocks = -(-channels // self.block)
            keep = max(1, round(self.density * blocks))
            step = 1 if self.kind == "one-filter" else group
            for first in range(0, filters, step):
                for chosen in rng.permutation(blocks)[:keep]:
                    mask[first : first + step, chosen * self.block : (chosen + 1) * self.block] = True
        return mask.reshape(filters, channels, shape.kernel, shape.kernel)


def granularities() -> Iterator[Granularity]:
    """All granularities, the most important first: a run that is stopped early has the same ones for every shape."""
    yield Granularity("stripe", 1.0)
    for group, block in ((64, 8), (32, 8), (128, 8), (64, 16), (32, 16), (128, 16)):
        yield from (Granularity("blocks", density, group, block) for density in DENSITIES)
    yield from (Granularity("stripe", density) for density in DENSITIES)
    for group in (32, 16, 8):
        yield from (Granularity("single", density, group, 1) for density in DENSITIES)
    for group, block in ((64, 8), (64, 1)):
        yield from (Granularity("2:4", density, group, block) for density in (1.0, 0.7, 0.5))
    yield from (Granularity("one-filter", density, 1, 1) for density in DENSITIES)
