"""``index_sets.safetensors``: index sets on disk, under ``<parameter name>.<array>``.

The header holds the format's name and version and, per layer, the weight's shape, the ONNX groups and the kind.
Reading is strict: an unknown version, a missing or surplus array, a wrong dtype, order or bound is refused with the
layer's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trtkp.errors import InputError
from trtkp.prune.index_set import IndexSet

__all__ = ["ARRAYS", "FORMAT", "VERSION", "load_index_sets", "save_index_sets"]

FORMAT = "trtkp.index_sets"
VERSION = "1"
ARRAYS = ("filters", "group_ptr", "entry_ptr", "channel", "taps")


def save_index_sets(path: str | PathLike[str], index_sets: Mapping[str, IndexSet]) -> None:
    """Write index sets, keyed by the parameter name of the weight. Equal input gives equal bytes."""
    layers = {
        name: {"shape": list(index.shape), "groups": index.groups, "kind": str(index.kind)}
        for name, index in sorted(index_sets.items())
    }
    tensors = {
        f"{name}.{array}": np.ascontiguousarray(getattr(index, array))
        for name, index in sorted(index_sets.items())
        for array in ARRAYS
    }
    save_file(tensors, path, {"format": FORMAT, "version": VERSION, "layers": json.dumps(layers)})


def load_index_sets(path: str | PathLike[str]) -> dict[str, IndexSet]:
    """Read and validate index sets.

    Raises:
        InputError: not such a file, another version, or an index set that breaks a rule of the format.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            layers = _layers(path, header)
            names = set(file.keys())
            expected = {f"{name}.{array}" for name in layers for array in ARRAYS}
            for name in sorted(names ^ expected):
                problem = "missing" if name in expected else "not announced in the header"
                raise InputError(f"array {name} is {problem}", file=path, remedy="build the bundle again")
            index_sets = {}
            for name, entry in layers.items():
                arrays = {array: file.get_tensor(f"{name}.{array}") for array in ARRAYS}
                index = IndexSet(shape=tuple(entry["shape"]), groups=entry["groups"], **arrays)
                index.validate(name)
                if str(index.kind) != entry["kind"]:
                    raise InputError(f"kind is {index.kind}, the header says {entry['kind']}", file=path, layer=name)
                index_sets[name] = index
            return index_sets
    except (SafetensorError, OSError) as error:
        raise InputError(f"not a readable safetensors file ({error})", file=path) from error


def _layers(path: Path, header: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The layers that the header announces, checked for form."""
    if header.get("format") != FORMAT:
        raise InputError("not a file of index sets", file=path)
    if header.get("version") != VERSION:
        raise InputError(
            f"index sets of version {header.get('version')}, this trtkp reads version {VERSION}",
            file=path,
            remedy="build the bundle again",
        )
    try:
        layers = json.loads(header["layers"])
        for entry in layers.values():
            shape, groups = entry["shape"], entry["groups"]
            well_formed = len(shape) == 4 and all(type(size) is int for size in (*shape, groups))
            if not well_formed or type(entry["kind"]) is not str:
                raise ValueError("ill-formed entry")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"header of the index sets cannot be read ({error})", file=path) from error
    return layers
