"""``ConvLayer``: one convolution as the pruning methods see it, with its geometry and sizes and no framework."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ConvLayer"]


@dataclass(frozen=True)
class ConvLayer:
    """A convolution node, and the parameter that holds its weight ``W[F, C, R, S]``.

    ``channels`` counts the channels of one ONNX group, as the weight's shape does. Sizes are those of one sample at the
    input shape that the table was made for. A weight that serves two nodes gives two layers with the same ``name``.

    Example:
        >>> layer = ConvLayer(
        ...     "conv1.weight", "Conv_0", filters=64, channels=3, kernel=(7, 7), strides=(2, 2), pads=(3, 3, 3, 3),
        ...     dilations=(1, 1), groups=1, input_size=(224, 224), output_size=(112, 112), bias=False, stem=True,
        ... )
        >>> layer.params, layer.macs
        (9408, 118013952)
    """

    name: str
    """Parameter name of the weight. Index sets and masks are keyed by it."""
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
    """Whether no other layer with weights lies between a graph input and this one."""
    repeats: int = 1
    """How many outputs the node computes for one sample: 1 in most nets, the frames of a clip in a video net."""

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
        """Whether every ONNX group reads a single channel."""
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
        """MACs per sample for each weight: P·Q times ``repeats``, as a weight is used once per output pixel."""
        return self.output_size[0] * self.output_size[1] * self.repeats

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample, F·C·R·S·P·Q times ``repeats``; biases are not counted."""
        return self.weight_count * self.macs_per_weight
