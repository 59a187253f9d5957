"""Allocations: a ratio and a granularity of its own for every layer, from the file given with ``--allocation FILE``.

``trtkp search`` writes such a file. The output of ``trtkp advise --json`` also works: it names the granularity that
pays in each layer, and ``--ratio`` then says how much to remove.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.files import parse_json, read_file
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet
from trtkp.pruning.method import Counting, Masks, Method, NetCounts
from trtkp.pruning.regulariser import CombinedRegulariser, Regulariser

if TYPE_CHECKING:
    import torch

__all__ = ["Allocated", "Allocation", "LayerSettings", "load_allocation"]

_FORMAT = 1


@dataclass(frozen=True)
class LayerSettings:
    """How one layer is pruned.

    Attributes:
        ratio: share of kernels, stripes or elements to remove.
        filter_group: filters that share a list; None for the method's default.
        channel_block: consecutive channels that are kept or removed together; None for the method's default.
    """

    ratio: float
    filter_group: int | None = None
    channel_block: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The settings that are not None, as the file holds them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Allocation:
    """The content of an allocation file. Layers that it does not name stay dense.

    Attributes:
        method: name of the method.
        layers: parameter name to the settings of that layer.
        settings: settings of the method that all layers share.
    """

    method: str
    layers: Mapping[str, LayerSettings]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The JSON document of the file."""
        layers = {name: layer.as_dict() for name, layer in self.layers.items()}
        return {"format": _FORMAT, "method": self.method, "settings": dict(self.settings), "layers": layers}


def load_allocation(path: str | PathLike[str], method: str | None = None, **settings: Any) -> Allocation:
    """Read an allocation file, or turn advice into an allocation.

    Args:
        path: a file that ``trtkp search`` wrote, or the output of ``trtkp advise --json``.
        method: the method to prune with; None for the one that the file names.
        settings: settings that the user gave beside the file. Advice needs ``ratio``; an allocation file takes none.

    Raises:
        InputError: the file is missing or is neither of the two, it is for another method, or the settings do not go
            with it.
    """
    path = Path(path)
    try:
        text = read_file(path, "allocation", "use global, uniform, or a file that trtkp search wrote")
    except InputError as error:  # the value may be meant as the name of a way, not of a file
        raise InputError(f"--allocation {path}: {error.message}", remedy=error.remedy) from None
    try:
        document = _Part.of(text)
        if b"trtkp.advice" in text[:4096]:
            pays = _advised(document)
            return _of_advice(path, pays, method, settings)
        read = _allocation(document)
    except _AllocationError as error:
        remedy = "take a file that trtkp search wrote, or what trtkp advise --json printed"
        raise InputError(f"not an allocation: {error}", file=path, remedy=remedy) from None
    if method is not None and read.method != method:
        raise InputError(
            f"the allocation is for {read.method}, not {method}", file=path, remedy=f"use --method {read.method}"
        )
    if settings:
        flag = next(iter(settings)).replace("_", "-")
        raise InputError(f"--{flag} and an allocation file exclude each other", file=path, remedy="leave it out")
    return read


def _of_advice(
    path: Path, pays: Mapping[str, tuple[int, int]], method: str | None, settings: Mapping[str, Any]
) -> Allocation:
    """Use the same ratio in every layer for which lists of kernels are recommended; other layers stay dense."""
    if method is None or settings.get("ratio") is None:
        raise InputError("advice says where to prune, not how much", file=path, remedy="give --ratio")
    ratio = settings["ratio"]
    if not 0 <= ratio < 1:
        raise InputError(f"--ratio {ratio:g}: out of range", file=path, remedy="give 0 to below 1")
    layers = {name: LayerSettings(ratio, *sizes) for name, sizes in pays.items()}
    return Allocation(method, layers, {key: value for key, value in settings.items() if key != "ratio"})


def _allocation(document: _Part) -> Allocation:
    """The allocation in a document of ``trtkp search``; an unknown name in it is an error."""
    document.check_names("format", "method", "settings", "layers")
    if "format" in document.value and document.part("format").size() != _FORMAT:
        raise _AllocationError("format", f"Input should be {_FORMAT}")
    method = document.part("method").text()
    settings = document.part("settings").mapping().value if "settings" in document.value else {}
    layers = {}
    for name, layer in document.part("layers").mapping().parts():
        layer.check_names("ratio", "filter_group", "channel_block")
        layers[name] = LayerSettings(
            layer.part("ratio").share(), layer.optional_size("filter_group"), layer.optional_size("channel_block")
        )
    return Allocation(method, layers, settings)


def _advised(document: _Part) -> dict[str, tuple[int, int]]:
    """Filter group and channel block of each layer for which the advice recommends lists of kernels."""
    for name, wanted in (("format", "trtkp.advice"), ("version", 1)):
        if document.part(name).value != wanted:
            raise _AllocationError(name, f"Input should be {wanted!r}")
    found = {}
    for name, layer in document.part("layers").mapping().parts():
        best = layer.part("recommended")
        if best.value is None:
            continue
        kind, *sizes = best.part("kind").text(), best.part("filter_group").size(), best.part("channel_block").size()
        if kind == "kernel":
            found[name] = (sizes[0], sizes[1])
    return found


class _AllocationError(Exception):
    """The document is not a valid one; the message says where and why."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where or 'file'}: {what}")


@dataclass(frozen=True)
class _Part:
    """A value in a JSON document, with its path for error messages.

    Messages are worded as pydantic's, which checks our other files; this room may import NumPy and PyTorch only.
    """

    where: str
    value: Any

    @classmethod
    def of(cls, text: bytes) -> _Part:
        """The whole document."""
        try:
            return cls("", parse_json(text)).mapping()
        except ValueError as error:  # the file is not UTF-8, or not JSON
            raise _AllocationError("", f"Invalid JSON: {' '.join(str(error).split())}") from None

    def part(self, name: str) -> _Part:
        where = f"{self.where}.{name}".removeprefix(".")
        if name not in self.mapping().value:
            raise _AllocationError(where, "Field required")
        return _Part(where, self.value[name])

    def parts(self) -> list[tuple[str, _Part]]:
        return [(name, self.part(name)) for name in self.value]

    def check_names(self, *known: str) -> None:
        for name in self.mapping().value:
            if name not in known:
                raise _AllocationError(self.part(name).where, "Extra inputs are not permitted")

    def mapping(self) -> _Part:
        if not isinstance(self.value, dict):
            raise _AllocationError(self.where, "Input should be an object")
        return self

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise _AllocationError(self.where, "Input should be a valid string")
        return self.value

    def share(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise _AllocationError(self.where, "Input should be a valid number")
        if not self.value >= 0:
            raise _AllocationError(self.where, "Input should be greater than or equal to 0")
        if not self.value < 1:
            raise _AllocationError(self.where, "Input should be less than 1")
        return float(self.value)

    def size(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise _AllocationError(self.where, "Input should be a valid integer")
        if self.value < 1:
            raise _AllocationError(self.where, "Input should be greater than or equal to 1")
        return self.value

    def optional_size(self, name: str) -> int | None:
        return None if self.value.get(name) is None else self.part(name).size()


@dataclass(frozen=True)
class Allocated(Method):
    """A method that prunes each layer with settings of its own.

    Args:
        allocation: the settings.
        make: makes the method from its name and settings: `make_method`, whose module imports this one.

    Raises:
        InputError: a setting does not work layer by layer, or the method refuses it.
    """

    allocation: Allocation
    make: Callable[..., Method]
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.allocation.method)
        if self.allocation.settings.get("allocation"):
            raise InputError("the setting allocation does not work in an allocation file", remedy="leave it out")
        self._method.check_by_layers()

    @cached_property
    def _method(self) -> Method:
        """The method with the settings that all layers share."""
        return self.make(self.name, **self.allocation.settings)

    @property
    def nm(self) -> str | None:
        """The method's setting for 2:4 inside lists."""
        return self._method.nm

    @property
    def expects_two_four(self) -> bool:
        """As the method says."""
        return self._method.expects_two_four

    @property
    def retrain(self) -> bool:
        """The method's setting."""
        return self._method.retrain

    @property
    def regularises(self) -> bool:
        """Whether the method trains towards its masks."""
        return self._method.regularises

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> Regulariser:
        """The method's regularisers, one for all layers with the same settings."""
        alike: dict[LayerSettings, list[ConvLayer]] = {}
        for layer in layers:
            alike.setdefault(self._settings_of(layer), []).append(layer)
        return CombinedRegulariser([self._of(part[0]).regulariser(model, part) for part in alike.values()])

    def settings(self) -> dict[str, Any]:
        """The settings that all layers share, and those of each layer under ``allocation``."""
        own = {name: layer.as_dict() for name, layer in sorted(self.allocation.layers.items())}
        return {**self.allocation.settings, "allocation": own}

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """As the method says."""
        return self._of(layer).inapplicable(layer)

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """Layers that the file does not name, or names with ratio 0."""
        given = self.allocation.layers.get(layer.name)
        return None if given is not None and given.ratio > 0 else "the allocation leaves it dense"

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Prune each layer alone, with its own settings."""
        masks: Masks = {}
        for layer in layers:
            self._settings_of(layer)
            masks |= self._of(layer).masks([layer], weights)
        return masks

    def coarser(self) -> str | None:
        """As the method says."""
        return self._method.coarser()

    def paper_index_bytes(self, index: IndexSet) -> int | None:
        """As the method says."""
        return self._method.paper_index_bytes(index)

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting | None:
        """As the method says."""
        return self._method.paper_counting(dense_params, net)

    def _settings_of(self, layer: ConvLayer) -> LayerSettings:
        given = self.allocation.layers.get(layer.name)
        if given is None:
            raise InputError(
                "the allocation file does not name it",
                layer=layer.name,
                remedy="name it there, or leave out --layers",
            )
        return given

    def _of(self, layer: ConvLayer) -> Method:
        given = self.allocation.layers.get(layer.name)
        own = given.as_dict() if given is not None else {}
        return self.make(self.name, **{**self.allocation.settings, **own}, allocation="uniform")
