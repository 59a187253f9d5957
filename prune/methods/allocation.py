"""Settings of a method layer by layer, from a file: what ``--allocation FILE`` takes.

``trtkp search`` writes such a file. The document of ``trtkp advise --json`` serves too: it names the granularity that
pays in every layer, and ``--ratio`` says how much of it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet
from trtkp.pruning.method import Masks, Method
from trtkp.pruning.regulariser import Regulariser, Together, Trainable, can_regularise

if TYPE_CHECKING:
    import torch

__all__ = ["Allocated", "Allocation", "LayerSettings", "load_allocation"]


_Document = TypeVar("_Document", bound=BaseModel)


class LayerSettings(BaseModel):
    """How one layer is pruned.

    Attributes:
        ratio: share of kernels, stripes or elements to remove.
        filter_group: see `granularity`.
        channel_block: likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

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

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    method: str
    settings: dict[str, Any] = {}
    layers: dict[str, LayerSettings]


class _Granularity(BaseModel):
    """The part of an advice's granularity that a method takes."""

    kind: str
    filter_group: int = Field(ge=1)
    channel_block: int = Field(ge=1)


class _Advised(BaseModel):
    """One layer of an advice."""

    recommended: _Granularity | None


class _Advice(BaseModel):
    """What is read of the document that ``trtkp advise --json`` prints."""

    format: Literal["trtkp.advice"]
    version: Literal[1]
    layers: dict[str, _Advised]

    def allocation(self, method: str, ratio: float, settings: Mapping[str, Any]) -> Allocation:
        """The same ratio in every layer for which lists of kernels are recommended; the others stay dense."""
        own = {
            name: LayerSettings(ratio=ratio, filter_group=best.filter_group, channel_block=best.channel_block)
            for name, layer in self.layers.items()
            if (best := layer.recommended) is not None and best.kind == "kernel"
        }
        return Allocation(method=method, settings=dict(settings), layers=own)


def load_allocation(path: str | PathLike[str], method: str | None = None, **settings: Any) -> Allocation:
    """Read an allocation file, or make an allocation of an advice.

    Args:
        path: of the file.
        method: that is to take it; None for the one that the file names.
        settings: that were given beside the file; an advice needs ``ratio`` among them.

    Raises:
        InputError: no such file, neither of the two, or settings that it leaves no room for.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"--allocation {path}: {error.strerror}", remedy="use global, uniform, or a file that trtkp search wrote"
        ) from None
    if b"trtkp.advice" in text[:4096]:
        advice = _validated(_Advice, text, path)
        if method is None or settings.get("ratio") is None:
            raise InputError("an advice says where to prune, not how much", file=path, remedy="give --ratio")
        if not 0 <= settings["ratio"] < 1:
            raise InputError(f"--ratio {settings['ratio']:g}: out of range", file=path, remedy="give 0 to below 1")
        others = {key: value for key, value in settings.items() if key != "ratio"}
        return advice.allocation(method, settings["ratio"], others)
    read = _validated(Allocation, text, path)
    if method is not None and read.method != method:
        raise InputError(
            f"the allocation is for {read.method}, not {method}", file=path, remedy=f"use --method {read.method}"
        )
    if settings:
        flag = next(iter(settings)).replace("_", "-")
        raise InputError(f"--{flag} and an allocation file exclude each other", file=path, remedy="leave it out")
    return read


def _validated(model: type[_Document], text: bytes, path: Path) -> _Document:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        remedy = "take a file that trtkp search wrote, or what trtkp advise --json printed"
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

    def __post_init__(self) -> None:
        for setting in ("allocation", "fully_connected", "reactivate"):
            if self.allocation.settings.get(setting):
                raise InputError(
                    f"{setting.replace('_', '-')} means nothing to an allocation by layers", remedy="leave it out"
                )

    @property
    def name(self) -> str:
        """As in ``--method``."""
        return self.allocation.method

    @property
    def nm(self) -> str | None:
        """The method's setting of 2:4 inside lists."""
        found: str | None = self.allocation.settings.get("nm")
        return found

    @property
    def expects_two_four(self) -> bool:
        """As the method's lists are chosen."""
        return bool(getattr(self.make(self.allocation.method, **self.allocation.settings), "expects_two_four", False))

    @property
    def retrain(self) -> bool:
        """The method's setting, where it has one."""
        return bool(self.allocation.settings.get("retrain", False))

    @property
    def searches(self) -> bool:
        """Whether the method has something to train towards."""
        return can_regularise(self.make(self.allocation.method, **self.allocation.settings))

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> Regulariser:
        """The method's, for all layers of the same settings together."""
        alike: dict[LayerSettings, list[ConvLayer]] = {}
        for layer in layers:
            alike.setdefault(self._settings_of(layer), []).append(layer)
        methods = [(self._of(part[0]), part) for part in alike.values()]
        return Together([method.regulariser(model, part) for method, part in methods if isinstance(method, Trainable)])

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
            self._settings_of(layer)
            masks |= self._of(layer).masks([layer], weights)
        return masks

    def paper_index_bytes(self, index: IndexSet) -> int:
        """Index bytes of a layer in the method's own form."""
        counter = getattr(self.make(self.allocation.method, **self.allocation.settings), "paper_index_bytes", None)
        return int(counter(index)) if counter is not None else index.nbytes

    def _settings_of(self, layer: ConvLayer) -> LayerSettings:
        given = self.allocation.layers.get(layer.name)
        if given is None:
            raise InputError(
                "the allocation file says nothing of it",
                layer=layer.name,
                remedy="name it there, or leave out --layers",
            )
        return given

    def _of(self, layer: ConvLayer) -> Method:
        given = self.allocation.layers.get(layer.name)
        own = given.model_dump(exclude_none=True) if given is not None else {}
        return self.make(self.allocation.method, **{**self.allocation.settings, **own}, allocation="uniform")
