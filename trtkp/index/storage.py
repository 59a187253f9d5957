"""``index_sets.safetensors``: index sets on disk, with tensors called ``<parameter name>.<array>``.

The header has one metadata entry, `FORMAT`. It is a JSON object with the version of the format, the SHA-256 of the
content and, for each layer, the weight's shape, the number of ONNX groups, the kind and, with a 2:4 refinement,
``"nm": "2:4"``. It is one entry because safetensors writes several in an order that changes from run to run.

Reading is strict. It refuses an unknown version, a wrong checksum, missing or surplus arrays, and arrays with a wrong
dtype, order or bound, and names the layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trtkp.errors import InputError
from trtkp.files import open_regular, parse_json, replacing
from trtkp.index.index_set import IndexSet

__all__ = ["ARRAYS", "FORMAT", "VERSION", "load_index_sets", "save_index_sets"]

FORMAT = "trtkp.index_sets"
VERSION = 1
ARRAYS = ("filters", "group_ptr", "entry_ptr", "channel", "taps")
#: The array of a 2:4 refinement, and the value of ``"nm"`` in the header.
NM_ARRAY, NM = "nm_mask", "2:4"

#: Types that the arrays may have, as safetensors names them.
_DTYPES = {"I32", "U16", "U64", "U8"}


def save_index_sets(path: str | PathLike[str], index_sets: Mapping[str, IndexSet]) -> None:
    """Write index sets, keyed by the parameter name of their weight. Equal input gives equal bytes."""
    layers = {
        name: {"shape": list(index.shape), "groups": index.groups, "kind": str(index.kind)}
        | ({} if index.nm_mask is None else {"nm": NM})
        for name, index in sorted(index_sets.items())
    }
    tensors = {
        f"{name}.{array}": np.ascontiguousarray(getattr(index_sets[name], array))
        for name, entry in layers.items()
        for array in _arrays(entry)
    }
    header = {"version": VERSION, "sha256": _digest(layers, tensors), "layers": layers}
    with replacing(Path(path)) as part:
        save_file(tensors, part, {FORMAT: json.dumps(header)})


def load_index_sets(path: str | PathLike[str]) -> dict[str, IndexSet]:
    """Read and validate index sets, keyed by the parameter name of their weight.

    Raises:
        InputError: the file holds no index sets, has another version or is damaged, or one of its index sets breaks a
            rule of the format.
    """
    path = Path(path)
    open_regular(path, "file of index sets").close()  # safetensors would name neither the file nor the remedy
    try:
        with safe_open(path, framework="numpy") as file:
            digest, layers = _header(path, file.metadata() or {})
            expected = {f"{name}.{array}" for name, entry in layers.items() for array in _arrays(entry)}
            for name in sorted(set(file.keys()) ^ expected):
                problem = "missing" if name in expected else "not announced in the header"
                raise InputError(f"array {name} is {problem}", file=path, remedy="build the bundle again")
            for name in sorted(expected):
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _DTYPES:  # refused before it is read: NumPy lacks some types of safetensors
                    raise InputError(f"array {name} is of type {dtype}", file=path, remedy="build the bundle again")
            tensors = {name: file.get_tensor(name) for name in sorted(expected)}
    except (SafetensorError, OSError) as error:
        raise InputError(f"not a readable safetensors file ({error})", file=path) from error
    index_sets = {}
    for name, entry in layers.items():
        arrays = {array: tensors[f"{name}.{array}"] for array in _arrays(entry)}
        index = IndexSet(shape=tuple(entry["shape"]), groups=entry["groups"], **arrays)
        try:
            index.validate(name)
        except InputError as error:
            raise InputError(error.message, file=path, layer=name, remedy=error.remedy) from error
        if str(index.kind) != entry["kind"]:
            raise InputError(f"kind is {index.kind}, the header says {entry['kind']}", file=path, layer=name)
        index_sets[name] = index
    if digest != _digest(layers, tensors):
        raise InputError("the file is damaged: its checksum does not fit", file=path, remedy="build the bundle again")
    return index_sets


def _arrays(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a layer's arrays, by its entry in the header."""
    return (*ARRAYS, NM_ARRAY) if "nm" in entry else ARRAYS


def _digest(layers: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over the header's entries of the layers and the bytes of every array, in the order of their names.

    Bytes are little-endian, so the checksum does not depend on the machine.
    """
    digest = hashlib.sha256(json.dumps(layers, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def _header(path: Path, metadata: Mapping[str, str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The checksum and the layers that the header announces. The entries are well-formed, their values unchecked."""
    if FORMAT not in metadata:
        raise InputError("not a file of index sets", file=path)
    try:
        header = parse_json(metadata[FORMAT])
        version = header["version"]
        if version == VERSION:
            layers: dict[str, dict[str, Any]] = header["layers"]
            for entry in layers.values():
                shape, groups = entry["shape"], entry["groups"]
                well_formed = len(shape) == 4 and all(type(size) is int for size in (*shape, groups))
                if not well_formed or type(entry["kind"]) is not str or entry.get("nm", NM) != NM:
                    raise ValueError("ill-formed entry")
            return str(header["sha256"]), layers
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"header of the index sets cannot be read ({error})", file=path) from error
    raise InputError(
        f"index sets of version {version}, this trtkp reads version {VERSION}",
        file=path,
        remedy="build the bundle again",
    )
