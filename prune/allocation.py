"""Settings of a method layer by layer, from a file: what ``trtkp search`` writes and ``--allocation FILE`` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtkp.errors import InputError
from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.index_set import IndexSet
from trtkp.prune.method import Masks, Method

__all__ = ["Allocated", "Allocation", "LayerSettings", "load_allocation"]


class LayerSettings(BaseModel):
    """How one layer is pruned.

    Attributes:
        ratio: share of kernels, stripes or elements to remove.
        filter_group: see `granularity`.
        channel_block: likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: float = Field(ge=0, lt=1)
    filter_group: int | None = Field(default=None, ge=1)
    channel_block: int | None = Field(default=None, ge=1)


class Allocation(BaseModel):
    """An allocation file: the layers that it does not name stay dense.

    Attributes:
        format: version of the file.
        method: as in ``--method``.
        settings: of the method, for all layers.
        layers: parameter name to what is its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    method: str
    settings: dict[str, Any] = {}
    layers: dict[str, LayerSettings]


def load_allocation(path: str | PathLike[str]) -> Allocation:
    """Read an allocation file.

    Raises:
        InputError: no such file, or not an allocation.
    """
    path = Path(path)
    try:
        return Allocation.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"--allocation {path}: {error.strerror}", remedy="use global, uniform, or a file that trtkp search wrote"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        remedy = "take a file that trtkp search wrote"
        raise InputError(f"not an allocation: {where}: {first['msg']}", file=path, remedy=remedy) from None


@dataclass(frozen=True)
class Allocated:
    """A method with settings of each layer's own.

    Args:
        allocation: see there.
        make: makes the method from its name and settings.
    """

    allocation: Allocation
    make: Callable[..., Method]

    @property
    def name(self) -> str:
        """As in ``--method``."""
        return self.allocation.method

    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter, the layers' own included."""
        own = {name: layer.model_dump(exclude_none=True) for name, layer in sorted(self.allocation.layers.items())}
        return {**self.allocation.settings, "allocation": own}

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """As the method says."""
        return self._of(layer).inapplicable(layer)

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """Layers that the file does not name, or leaves whole."""
        given = self.allocation.layers.get(layer.name)
        return None if given is not None and given.ratio > 0 else "the allocation leaves it dense"

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """One mask per layer, each layer by itself."""
        masks: Masks = {}
        for layer in layers:
            masks |= self._of(layer).masks([layer], weights)
        return masks

    def paper_index_bytes(self, index: IndexSet) -> int:
        """Index bytes of a layer in the method's own form."""
        counter = getattr(self.make(self.allocation.method, **self.allocation.settings), "paper_index_bytes", None)
        return int(counter(index)) if counter is not None else index.nbytes

    def _of(self, layer: ConvLayer) -> Method:
        given = self.allocation.layers.get(layer.name)
        own = given.model_dump(exclude_none=True) if given is not None else {}
        return self.make(self.allocation.method, **{**self.allocation.settings, **own}, allocation="uniform")
