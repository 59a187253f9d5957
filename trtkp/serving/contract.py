"""The inputs and outputs of a served model, and the checks of a request before it is queued.

Shapes are checked against the engine's profile before any memory is allocated, so a request that declares a huge tensor
costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from trtkp.bundle import Bundle
from trtkp.bundle.manifest import TensorRecord
from trtkp.errors import InputError
from trtkp.serving.datatypes import DATATYPES, datatype_of
from trtkp.serving.errors import BadRequest
from trtkp.shapes import Shape

__all__ = ["Contract", "Feeds", "RawTensor", "TensorContract"]

Feeds = dict[str, np.ndarray]

#: For each kind of NumPy type, the kinds that a list parsed from JSON may have: integers are fine for a float input,
#: but not the other way round. "V" is bfloat16.
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf", "V": "iuf"}


@dataclass(frozen=True)
class RawTensor:
    """A tensor as received: bytes from a binary request, or a flat or nested list from a JSON request."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes | memoryview | Sequence[Any]


@dataclass(frozen=True)
class TensorContract:
    """An input or output of a model.

    Attributes:
        name: name of the tensor.
        datatype: the protocol's name of its type, such as ``FP32``.
        dims: size of every dimension; a dynamic one is given by its name.
        low: smallest size of every dimension (inputs only).
        high: largest size of every dimension (inputs only).

    Example:
        >>> image = TensorContract("image", "FP32", ("N", 3, 8, 8), low=(1, 3, 8, 8), high=(16, 3, 8, 8))
        >>> str(image)
        'image FP32[1..16, 3, 8, 8]'
        >>> image.array(RawTensor("image", "FP32", [1, 3, 8, 8], bytes(4 * 3 * 8 * 8))).shape
        (1, 3, 8, 8)
    """

    name: str
    datatype: str
    dims: tuple[int | str, ...]
    low: Shape = ()
    high: Shape = ()

    @property
    def dtype(self) -> np.dtype:
        """The NumPy type."""
        return DATATYPES[self.datatype]

    @property
    def shape(self) -> list[int]:
        """The shape as the protocol writes it: dynamic dimensions are -1."""
        return [-1 if isinstance(dim, str) else dim for dim in self.dims]

    def __str__(self) -> str:
        sizes = [str(a) if a == b else f"{a}..{b}" for a, b in zip(self.low, self.high, strict=True)]
        return f"{self.name} {self.datatype}[{', '.join(sizes)}]"

    def array(self, raw: RawTensor) -> np.ndarray:
        """Check type, rank, sizes, amount of data and values of a tensor, and return it as an array.

        Raises:
            BadRequest: a check failed. The message names the input, what was expected, and what was given.
        """
        shape = self.check_form(raw.datatype, raw.shape)
        if isinstance(raw.data, bytes | memoryview):
            return self._from_bytes(raw.data, shape)
        return self._from_list(raw.data, shape)

    def check_form(self, datatype: str, shape: Sequence[int]) -> Shape:
        """Check type, rank and sizes of a tensor, and return its shape.

        Raises:
            BadRequest: they are not those of the input.
        """
        # Text from the client is cut in messages: it may be megabytes long, and it goes into the log.
        if datatype != self.datatype:
            raise BadRequest(f"input {self.name}: expected {self}, got datatype {str(datatype)[:40]}")
        if len(shape) != len(self.dims) or not all(
            low <= size <= high for low, size, high in zip(self.low, shape, self.high, strict=True)
        ):
            raise BadRequest(f"input {self.name}: expected {self}, got shape {str(list(shape))[:200]}")
        return tuple(shape)

    def _from_bytes(self, data: bytes | memoryview, shape: Shape) -> np.ndarray:
        expected = math.prod(shape) * self.dtype.itemsize
        if len(data) != expected:
            raise BadRequest(f"input {self.name}: shape {list(shape)} needs {expected} bytes, got {len(data)}")
        array = np.frombuffer(data, self.dtype).reshape(shape)
        if self.datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
            raise BadRequest(f"input {self.name}: each BOOL value must be a byte of 0 or 1")
        return array

    def _from_list(self, data: Sequence[Any], shape: Shape) -> np.ndarray:
        count, types = _leaves(data)
        if not types <= {bool, int, float}:
            raise BadRequest(f"input {self.name}: data is ragged or holds values that are not {self.datatype}")
        if count != math.prod(shape):
            raise BadRequest(f"input {self.name}: shape {list(shape)} needs {math.prod(shape)} values, got {count}")
        try:
            values = np.asarray(data)
        except (ValueError, OverflowError):
            raise BadRequest(f"input {self.name}: data is ragged") from None
        if values.dtype.kind not in _KINDS[self.dtype.kind] and values.size:
            raise BadRequest(f"input {self.name}: data holds values that are not {self.datatype}")
        if self.dtype.kind in "iu" and values.size:
            limits = np.iinfo(self.dtype)
            if int(values.min()) < limits.min or int(values.max()) > limits.max:
                raise BadRequest(f"input {self.name}: values outside {limits.min}..{limits.max} of {self.datatype}")
        with np.errstate(over="ignore"):  # JSON numbers are doubles; one beyond the range of FP32 becomes infinity
            return values.astype(self.dtype).reshape(shape)


@dataclass(frozen=True)
class Contract:
    """One version of a model: its inputs and outputs, and how its requests are batched.

    Attributes:
        name: name of the model.
        version: version number, as text.
        platform: backend and precision, such as ``trtkp_onnxruntime_fp32``.
        inputs: the inputs by name.
        outputs: the outputs by name.
        batch: smallest and largest number of rows of one run; None if requests cannot share a run. A batch with fewer
            rows than the smallest is padded with zeros.
    """

    name: str
    version: str
    platform: str
    inputs: dict[str, TensorContract]
    outputs: dict[str, TensorContract]
    batch: tuple[int, int] | None

    @classmethod
    def of(cls, bundle: Bundle, name: str, version: str = "1", max_batch: int | None = None) -> Contract:
        """Make the contract of a bundle from its manifest.

        Args:
            bundle: the bundle to serve.
            name: name of the model.
            version: version number, as text.
            max_batch: largest batch; None for the profile's.

        Raises:
            InputError: the protocol has no name for a tensor's type, or ``max_batch`` is below the smallest batch.
        """
        manifest = bundle.manifest
        batch = _batch(bundle)
        if batch is not None and max_batch is not None:
            if max_batch < batch[0]:
                raise InputError(f"--max-batch {max_batch}: the engine needs {batch[0]} or more", file=bundle.path)
            batch = (batch[0], min(batch[1], max_batch))
        inputs = {}
        for record in manifest.inputs:
            low, high = (tuple(manifest.profile[record.name][end]) for end in ("min", "max"))
            if batch is not None:  # a request may have a single row: it is batched with others, or padded
                low, high = (1, *low[1:]), (batch[1], *high[1:])
            inputs[record.name] = _tensor(record, low, high)
        outputs = {record.name: _tensor(record) for record in manifest.outputs}
        return cls(name, version, f"trtkp_{manifest.backend}_{manifest.precision}", inputs, outputs, batch)

    def check(self, tensors: Sequence[RawTensor], outputs: Sequence[str] = ()) -> Feeds:
        """Check a request and return its inputs as arrays.

        Args:
            tensors: the inputs as received.
            outputs: names of the requested outputs.

        Raises:
            BadRequest: a name is unknown, missing or given twice, or a type, shape or amount of data is wrong.
        """
        for wanted in outputs:
            if wanted not in self.outputs:
                raise BadRequest(f"no output {wanted[:80]!r}; the model has {', '.join(self.outputs)}")
        feeds: Feeds = {}
        for raw in tensors:
            spec = self.inputs.get(raw.name)
            if spec is None:
                raise BadRequest(f"no input {raw.name[:80]!r}; the model has {', '.join(self.inputs)}")
            if raw.name in feeds:
                raise BadRequest(f"input {raw.name} is given twice")
            feeds[raw.name] = spec.array(raw)
        for name, spec in self.inputs.items():
            if name not in feeds:
                raise BadRequest(f"input {name} is missing; expected {spec}")
        self._check_symbols(feeds)
        return feeds

    def _check_symbols(self, feeds: Feeds) -> None:
        """Check that dimensions with the same name have the same size in all inputs."""
        sizes: dict[str, tuple[int, str]] = {}
        for name, spec in self.inputs.items():
            for axis, (dim, size) in enumerate(zip(spec.dims, feeds[name].shape, strict=True)):
                symbol = "batch" if axis == 0 and self.batch is not None else dim
                if isinstance(symbol, str) and sizes.setdefault(symbol, (size, name))[0] != size:
                    known, first = sizes[symbol]
                    raise BadRequest(f"input {name}: size {size} of dimension {axis}, but {known} in input {first}")

    def rows(self, feeds: Mapping[str, np.ndarray]) -> int:
        """Number of rows that a request adds to a batch; 1 if requests are not batched."""
        return next(iter(feeds.values())).shape[0] if self.batch is not None else 1

    def key(self, feeds: Mapping[str, np.ndarray]) -> tuple[Shape, ...]:
        """Sizes of all inputs without the batch. Requests with the same key can share a run."""
        return tuple(feeds[name].shape[1:] for name in self.inputs)


def _leaves(data: Sequence[Any]) -> tuple[int, set[type]]:
    """Count the values in nested lists, and collect their types.

    This comes before NumPy sees the data: NumPy gives every string in a list the width of the longest, so a small
    hostile request could make it allocate gigabytes.
    """
    while (types := set(map(type, data))) == {list}:
        data = list(chain.from_iterable(data))
    return len(data), types


def _tensor(record: TensorRecord, low: Shape = (), high: Shape = ()) -> TensorContract:
    return TensorContract(record.name, datatype_of(record.dtype), tuple(record.shape), low, high)


def _batch(bundle: Bundle) -> tuple[int, int] | None:
    """Smallest and largest batch, if the first dimension of every input and output is the same; None otherwise."""
    manifest = bundle.manifest
    records = [*manifest.inputs, *manifest.outputs]
    # A one-dimensional tensor is not a batch of samples, and an output without the batch cannot be split again.
    if any(len(record.shape) < 2 for record in records) or len({record.shape[0] for record in records}) != 1:
        return None
    limits = [manifest.profile[record.name] for record in manifest.inputs]
    return max(limit["min"][0] for limit in limits), min(limit["max"][0] for limit in limits)
