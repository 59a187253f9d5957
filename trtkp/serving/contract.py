"""What a served model takes and gives, and every check of a request before it is queued.

Sizes are held against the engine's profile before a byte is allocated, so a request that declares a huge tensor costs
nothing.
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

#: JSON numbers that a type takes, as NumPy kinds of the parsed list.
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf", "V": "iuf"}


@dataclass(frozen=True)
class RawTensor:
    """A tensor as it came: bytes of the binary forms, or the (nested) list of the JSON form."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes | memoryview | Sequence[Any]


@dataclass(frozen=True)
class TensorContract:
    """An input or output.

    Attributes:
        name: of the tensor.
        datatype: in the protocol's words.
        dims: sizes; a dynamic dimension is its symbol.
        low: smallest sizes (inputs only).
        high: largest sizes (inputs only).
    """

    name: str
    datatype: str
    dims: tuple[int | str, ...]
    low: Shape = ()
    high: Shape = ()

    @property
    def dtype(self) -> np.dtype:
        """NumPy's type."""
        return DATATYPES[self.datatype]

    @property
    def shape(self) -> list[int]:
        """Sizes as the protocol states them: dynamic ones are -1."""
        return [-1 if isinstance(dim, str) else dim for dim in self.dims]

    def __str__(self) -> str:
        sizes = [str(a) if a == b else f"{a}..{b}" for a, b in zip(self.low, self.high, strict=True)]
        return f"{self.name} {self.datatype}[{', '.join(sizes)}]"

    def array(self, raw: RawTensor) -> np.ndarray:
        """The tensor, checked: type, rank, every size, amount of data; then its values.

        Raises:
            BadRequest: it names the input, what was expected and what came.
        """
        if raw.datatype != self.datatype:
            raise BadRequest(f"input {self.name}: expected {self}, got datatype {str(raw.datatype)[:40]}")
        shape = tuple(raw.shape)
        if len(shape) != len(self.dims) or not all(
            low <= size <= high for low, size, high in zip(self.low, shape, self.high, strict=True)
        ):
            raise BadRequest(f"input {self.name}: expected {self}, got shape {str(list(shape))[:200]}")
        if isinstance(raw.data, bytes | memoryview):
            return self._from_bytes(raw.data, shape)
        return self._from_list(raw.data, shape)

    def _from_bytes(self, data: bytes | memoryview, shape: Shape) -> np.ndarray:
        expected = math.prod(shape) * self.dtype.itemsize
        if len(data) != expected:
            raise BadRequest(f"input {self.name}: shape {list(shape)} takes {expected} bytes, got {len(data)}")
        array = np.frombuffer(data, self.dtype).reshape(shape)
        if self.datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
            raise BadRequest(f"input {self.name}: BOOL is a byte of 0 or 1")
        return array

    def _from_list(self, data: Sequence[Any], shape: Shape) -> np.ndarray:
        count, types = _leaves(data)
        if not types <= {bool, int, float}:
            raise BadRequest(f"input {self.name}: data is ragged or holds values that are no {self.datatype}")
        if count != math.prod(shape):
            raise BadRequest(f"input {self.name}: shape {list(shape)} takes {math.prod(shape)} values, got {count}")
        try:
            values = np.asarray(data)
        except (ValueError, OverflowError):
            raise BadRequest(f"input {self.name}: data is ragged") from None
        if values.dtype.kind not in _KINDS[self.dtype.kind] and values.size:
            raise BadRequest(f"input {self.name}: data holds values that are no {self.datatype}")
        if self.dtype.kind in "iu" and values.size:
            limits = np.iinfo(self.dtype)
            if int(values.min()) < limits.min or int(values.max()) > limits.max:
                raise BadRequest(f"input {self.name}: values outside {limits.min}..{limits.max} of {self.datatype}")
        with np.errstate(over="ignore"):  # a double beyond fp32 is an infinity there
            return values.astype(self.dtype).reshape(shape)


@dataclass(frozen=True)
class Contract:
    """A model and version: its tensors, and how requests of it are batched.

    Attributes:
        name: the model's.
        version: a number, as text.
        platform: backend and precision.
        inputs: by name.
        outputs: by name.
        batch: fewest and most rows of one run; None where rows of two requests cannot share one. Requests with fewer
            rows than the engine takes are padded with zeros.
    """

    name: str
    version: str
    platform: str
    inputs: dict[str, TensorContract]
    outputs: dict[str, TensorContract]
    batch: tuple[int, int] | None

    @classmethod
    def of(cls, bundle: Bundle, name: str, version: str = "1", max_batch: int | None = None) -> Contract:
        """The contract of a bundle, by its manifest.

        Raises:
            InputError: a type that the protocol lacks, or ``max_batch`` below the profile's smallest batch.
        """
        manifest = bundle.manifest
        batch = _batch(bundle)
        if batch is not None and max_batch is not None:
            if max_batch < batch[0]:
                raise InputError(f"--max-batch {max_batch}: the engine takes {batch[0]} or more", file=bundle.path)
            batch = (batch[0], min(batch[1], max_batch))
        inputs = {}
        for record in manifest.inputs:
            low, high = (tuple(manifest.profile[record.name][end]) for end in ("min", "max"))
            if batch is not None:
                low, high = (1, *low[1:]), (batch[1], *high[1:])
            inputs[record.name] = _tensor(record, low, high)
        outputs = {record.name: _tensor(record) for record in manifest.outputs}
        return cls(name, version, f"trtkp_{manifest.backend}_{manifest.precision}", inputs, outputs, batch)

    def check(self, tensors: Sequence[RawTensor], outputs: Sequence[str] = ()) -> Feeds:
        """The feeds of a request that is in order.

        Raises:
            BadRequest: unknown, missing or doubled names, wrong types, shapes or amounts of data.
        """
        for wanted in outputs:
            if wanted not in self.outputs:
                raise BadRequest(f"no output {wanted[:80]!r}; the model gives {', '.join(self.outputs)}")
        feeds: Feeds = {}
        for raw in tensors:
            spec = self.inputs.get(raw.name)
            if spec is None:
                raise BadRequest(f"no input {raw.name[:80]!r}; the model takes {', '.join(self.inputs)}")
            if raw.name in feeds:
                raise BadRequest(f"input {raw.name} is there twice")
            feeds[raw.name] = spec.array(raw)
        for name, spec in self.inputs.items():
            if name not in feeds:
                raise BadRequest(f"input {name} is missing; expected {spec}")
        self._check_symbols(feeds)
        return feeds

    def _check_symbols(self, feeds: Feeds) -> None:
        """A dimension of one name has one size throughout a request."""
        sizes: dict[str, tuple[int, str]] = {}
        for name, spec in self.inputs.items():
            for axis, (dim, size) in enumerate(zip(spec.dims, feeds[name].shape, strict=True)):
                symbol = "batch" if axis == 0 and self.batch is not None else dim
                if isinstance(symbol, str) and sizes.setdefault(symbol, (size, name))[0] != size:
                    known, first = sizes[symbol]
                    raise BadRequest(f"input {name}: size {size} of dimension {axis}, but {known} in input {first}")

    def rows(self, feeds: Mapping[str, np.ndarray]) -> int:
        """Rows of a request: its share of a batch; 1 where nothing is batched."""
        return next(iter(feeds.values())).shape[0] if self.batch is not None else 1

    def key(self, feeds: Mapping[str, np.ndarray]) -> tuple[Shape, ...]:
        """Requests of one key can share a run."""
        return tuple(feeds[name].shape[1:] for name in self.inputs)


def _leaves(data: Sequence[Any]) -> tuple[int, set[type]]:
    """How many values nested lists hold and of which types, before NumPy, which gives every text the longest's room."""
    while (types := set(map(type, data))) == {list}:
        data = list(chain.from_iterable(data))
    return len(data), types


def _tensor(record: TensorRecord, low: Shape = (), high: Shape = ()) -> TensorContract:
    return TensorContract(record.name, datatype_of(record.dtype), tuple(record.shape), low, high)


def _batch(bundle: Bundle) -> tuple[int, int] | None:
    """The range of the batch, if every input and output leads with the same dimension."""
    manifest = bundle.manifest
    records = [*manifest.inputs, *manifest.outputs]
    if any(len(record.shape) < 2 for record in records) or len({record.shape[0] for record in records}) != 1:
        return None
    limits = [manifest.profile[record.name] for record in manifest.inputs]
    return max(limit["min"][0] for limit in limits), min(limit["max"][0] for limit in limits)
