"""Files in V-SKP's two index formats: safetensors with one array per layer, by the name of the weight.

The type of an array tells its format (`trtkp.pruning.methods.vskp`):

- int32 [F, K]: the list of the channels that each filter keeps;
- uint8 [F, ceil(C/8)]: a bitmap, with the lowest channel in the highest bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from trtkp.errors import InputError
from trtkp.files import check_name, read_file, replacing, writing
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet
from trtkp.pruning.method import Counting, Masks, Method, NetCounts
from trtkp.pruning.methods.vskp import (
    counted_with_batch_norm,
    index_list,
    kernel_bitmap,
    mask_of_bitmap,
    mask_of_list,
)
from trtkp.pruning.scope import no_kernel_to_drop

__all__ = ["FORMATS", "Listed", "save_index"]

#: Bytes that a file of indices may have. Lists of one number per kernel of a 1-GB net take about 120 MB.
_MOST = 1 << 30
#: What ``--form`` takes.
FORMATS: dict[str, Callable[[IndexSet], npt.NDArray[Any]]] = {"bitmap": kernel_bitmap, "list": index_list}


def save_index(path: str | PathLike[str], index_sets: Mapping[str, IndexSet], form: str) -> None:
    """Write index sets in one of V-SKP's index formats.

    Args:
        path: the safetensors file to write.
        index_sets: the index sets, by parameter name.
        form: ``bitmap`` or ``list``.

    Raises:
        InputError: the format is unknown, or it cannot hold the index sets.
        JobError: the file cannot be written.
    """
    if form not in FORMATS:
        raise InputError(f"--form {form}: not known", remedy=f"use {' or '.join(FORMATS)}")
    arrays = {}
    for name, index in sorted(index_sets.items()):
        if index.nm_mask is not None:
            raise InputError("V-SKP's index formats cannot hold 2:4 inside lists", layer=name)
        try:
            arrays[name] = FORMATS[form](index)
        except InputError as error:
            raise InputError(error.message, layer=name, remedy=error.remedy) from None
    if not arrays:
        raise InputError("it holds no pruned layer", remedy="give a directory that trtkp prune or trtkp build wrote")
    path = Path(path)
    check_name(path)
    with writing(path), replacing(path) as part:
        save_file(arrays, part, {"format": "np"})


@dataclass(frozen=True)
class Listed(Method):
    """``--index``: kernels that were chosen elsewhere, from a file in V-SKP's index formats.

    Args:
        path: the file. Layers that it does not name stay dense.

    Raises:
        InputError: the file cannot be read, or an array has neither format.
    """

    path: Path
    _arrays: dict[str, npt.NDArray[Any]] = field(init=False, repr=False)
    _digest: str = field(init=False, repr=False)

    name = "vskp"

    def __post_init__(self) -> None:
        try:
            content = read_file(self.path, "file of indices", most=_MOST)
            arrays = load(content)
        # safetensors raises TypeError or KeyError for types that NumPy does not have
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise InputError(f"is not a readable index ({error})", file=self.path) from None
        for name, array in arrays.items():
            if array.ndim != 2 or array.dtype not in (np.int32, np.uint8):
                found = f"{array.dtype}{list(array.shape)}"
                raise InputError(
                    f"{found} is neither a list (int32 [F, K]) nor a bitmap (uint8 [F, ceil(C/8)])",
                    file=self.path,
                    layer=name,
                )
        object.__setattr__(self, "_arrays", arrays)
        object.__setattr__(self, "_digest", sha256(content).hexdigest())

    def check_layers(self, layers: Sequence[ConvLayer]) -> None:
        """Check that the index belongs to this model.

        Raises:
            InputError: it names a convolution that the model does not have.
        """
        known = {layer.name for layer in layers}
        for name in self._arrays:
            if name not in known:
                raise InputError("the model has no such convolution", file=self.path, layer=name)

    def settings(self) -> dict[str, Any]:
        """The file's name and SHA-256. The lists themselves are in the pruned directory's index sets."""
        return {"index": self.path.name, "sha256": self._digest}

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """As for V-SKP."""
        return no_kernel_to_drop(layer)

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """Layers that the file does not name."""
        return None if layer.name in self._arrays else "the index does not name it"

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """The masks of the file's lists.

        Raises:
            InputError: a list does not fit its layer.
        """
        del weights
        masks: Masks = {}
        for layer in layers:
            array = self._arrays.get(layer.name)
            if array is None:
                continue
            form = mask_of_bitmap if array.dtype == np.uint8 else mask_of_list
            try:
                masks[layer.name] = form(array, layer.weight_shape)
            except InputError as error:
                raise InputError(error.message, file=self.path, layer=layer.name) from None
        return masks

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting:
        """As V-SKP's authors count."""
        return counted_with_batch_norm(dense_params, net)

    def paper_index_bytes(self, index: IndexSet) -> int:
        """Bytes of the bitmap format."""
        return int(kernel_bitmap(index).nbytes)
