"""One convolution as the pruning methods see it: its geometry and sizes, no framework."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ConvLayer"]


@dataclass(frozen=True)
class ConvLayer:
    """A convolution node and the parameter that holds its weight ``W[F, C, R, S]``.

    ``channels`` counts the channels of one ONNX group, as in the weight's shape. Sizes are those of one sample at the
    shape that the table was made for. A weight that serves two nodes gives two layers of the same ``name``.
    """

    name: str
    """Parameter name of the weight; index sets carry this name."""
    node: str
    """Name of the graph node."""
    filters: int
    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    """Top, left, bottom, right."""
    dilations: tuple[int, int]
    groups: int
    input_size: tuple[int, int]
    """Height and width."""
    output_size: tuple[int, int]
    bias: bool
    stem: bool
    """No other weighted layer lies between a graph input and this one."""
    repeats: int = 1
    """Times that the node computes an output for one sample: the frames of a clip, 1 in most nets."""

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(F, C, R, S)``."""
        return self.filters, self.channels, *self.kernel

    @property
    def taps(self) -> int:
        """R·S."""
        return self.kernel[0] * self.kernel[1]

    @property
    def depthwise(self) -> bool:
        """Every group sees a single channel."""
        return self.groups > 1 and self.channels == 1

    @property
    def weight_count(self) -> int:
        """F·C·R·S."""
        return self.filters * self.channels * self.taps

    @property
    def params(self) -> int:
        """Weights and biases."""
        return self.weight_count + (self.filters if self.bias else 0)

    @property
    def macs_per_weight(self) -> int:
        """Each weight is used once per output pixel: P·Q, times ``repeats``."""
        return self.output_size[0] * self.output_size[1] * self.repeats

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample, F·C·R·S·P·Q times ``repeats``; biases are not counted."""
        return self.weight_count * self.macs_per_weight
