"""Reading exported programs (``torch.export.save``) from untrusted sources, without ``torch.export.load``.

``torch.export.load`` runs code from a hostile archive. It unpickles sample inputs, constants and weights with
``weights_only=False`` if the safe way fails, loads custom objects and AOTInductor libraries, evaluates size
expressions, and compiles guard strings.

Here `CheckedZip` reads the archive, `clean_program` rebuilds its JSON, and tensors are made from raw bytes. PyTorch's
graph deserialiser gets only the result.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trtkp.errors import InputError, raise_if_out_of_memory
from trtkp.model.program import clean_program, clean_tensor_meta, is_parameter_name, parse_json
from trtkp.model.zipcheck import CheckedZip

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["load_program"]

_EXPORT_AGAIN = "export the model again with torch.export.save"
_LEGACY_GRAPH = "serialized_exported_program.json"
# An expanded tensor may have more elements than its storage. More than this many are refused, as reading them as an
# array would allocate memory for all of them.
_MAX_EXPANDED = 1 << 24


def load_program(handle: IO[bytes], path: Path) -> ExportedProgram:
    """The exported program in an archive, on the CPU.

    Args:
        handle: the open file.
        path: its path, for error messages.

    Raises:
        InputError: the archive is broken, or holds anything that could run code.
    """
    archive = CheckedZip(handle, path)
    legacy = _LEGACY_GRAPH in archive
    try:
        if legacy:
            data = clean_program(parse_json(archive.read(_LEGACY_GRAPH)))
            tensors, constants = _legacy_tensors(archive)
        else:
            _check_members(archive)
            data = clean_program(parse_json(archive.read("models/model.json")))
            tensors = _payload(archive, "weights", "weight_")
            constants = _payload(archive, "constants", "tensor_")
            _check_pickle(archive, "data/sample_inputs/model.pt")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"the exported program is refused: {reason}", file=path, remedy=_EXPORT_AGAIN) from None
    return _build(data, tensors, constants, path)


def _check_members(archive: CheckedZip) -> None:
    for name in archive.names:
        problem = None
        if name.startswith("data/aotinductor/") or name.endswith((".so", ".dll", ".dylib")):
            problem = "is compiled code (AOTInductor)"
        elif name.startswith("data/constants/") and name.split("/")[-1].startswith(("custom_obj_", "opaque_obj_")):
            problem = "is a custom object, which loading would execute"
        elif name in ("data/weights/model.pt", "data/constants/model.pt"):
            problem = "is of an old layout"
        elif name.startswith("models/") and name != "models/model.json":
            problem = "is a second program"
        if problem:
            raise ValueError(f"member {name} {problem}")
    if archive.read("archive_format") != b"pt2":
        raise ValueError("its archive_format is not pt2")
    if archive.read("archive_version") != b"0":
        raise ValueError(f"its archive version {bytes(archive.read('archive_version')[:20])!a} is not known")
    if "byteorder" in archive and archive.read("byteorder") != b"little":
        raise ValueError("it was saved on a big-endian machine")


def _payload(archive: CheckedZip, folder: str, prefix: str) -> dict[str, torch.Tensor]:
    """Weights or constants by name. Each is a view of the bytes of its member, without a copy."""
    import torch
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    config = parse_json(archive.read(f"data/{folder}/model_{folder}_config.json"))["config"]
    flat: dict[tuple[str, torch.dtype], torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, meta in config.items():
        if not is_parameter_name(name):
            raise ValueError(f"{ascii(name)[:80]} is not a parameter name")
        member = meta["path_name"]
        number = member.removeprefix(prefix)
        if not member.startswith(prefix) or not number.isdecimal():
            raise ValueError(f"{name} is stored as {ascii(member)[:60]}, not as plain numbers")
        if meta["use_pickle"] is not False:
            raise ValueError(f"{name} is a pickled object")
        clean = clean_tensor_meta(meta["tensor_meta"])
        dtype = _SERIALIZE_TO_TORCH_DTYPE[clean["dtype"]]
        if (member, dtype) not in flat:
            data = archive.read(f"data/{folder}/{member}")
            if len(data) % dtype.itemsize:
                raise ValueError(f"{name} has {len(data)} bytes, no multiple of {dtype.itemsize}")
            flat[member, dtype] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        sizes, strides, offset = (_numbers(clean[key]) for key in ("sizes", "strides", "storage_offset"))
        tensors[name] = _view(name, flat[member, dtype], sizes, strides, offset[0])
        if meta["is_param"]:
            floating = dtype.is_floating_point or dtype.is_complex
            tensors[name] = torch.nn.Parameter(tensors[name], requires_grad=clean["requires_grad"] and floating)
    return tensors


def _numbers(values: Any) -> list[int]:
    values = values if isinstance(values, list) else [values]
    if any("as_int" not in value for value in values):
        raise ValueError("a stored tensor has a size that is not a number")
    return [value["as_int"] for value in values]


def _view(name: str, flat: torch.Tensor, sizes: list[int], strides: list[int], offset: int) -> torch.Tensor:
    if len(sizes) != len(strides) or len(sizes) > 16:
        raise ValueError(f"{name} has {len(sizes)} sizes and {len(strides)} strides")
    count = math.prod(sizes)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if count and (last >= flat.numel() or count > max(flat.numel(), _MAX_EXPANDED)):
        raise ValueError(f"{name} of shape {sizes} does not fit into its {flat.numel()} stored values")
    return flat.as_strided(sizes, strides, offset if count else 0)


def _check_pickle(archive: CheckedZip, name: str) -> Any:
    """The content of a pickled member if ``torch.load(weights_only=True)`` can read it. Otherwise it is refused."""
    import torch

    if name not in archive or not archive.size(name):
        return None
    data = io.BytesIO(archive.read(name))
    try:
        if data.getvalue().startswith(b"PK"):
            CheckedZip(io.BytesIO(data.getvalue()), archive.path)
        return torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:
        raise_if_out_of_memory(error)
        # Unpickling raises exceptions of every kind.
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ValueError(f"member {name} is not plain tensors ({reason})") from None


def _legacy_tensors(archive: CheckedZip) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and constants in the layout before archive version 0, which are pickled dictionaries."""
    import torch

    found = []
    for part in ("state_dict", "constants", "example_inputs"):
        if f"serialized_{part}.json" in archive:
            raise ValueError(f"serialized_{part}.json is of a layout that is not read any more")
        value = _check_pickle(archive, f"serialized_{part}.pt")
        if part != "example_inputs":
            value = {} if value is None else value
            if not isinstance(value, dict) or not all(
                is_parameter_name(name) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
            ):
                raise ValueError(f"serialized_{part}.pt holds something else than tensors")
            found.append(value)
    return found[0], found[1]


def _build(
    data: dict[str, Any], tensors: dict[str, torch.Tensor], constants: dict[str, torch.Tensor], path: Path
) -> ExportedProgram:
    import torch
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

    import trtkp.pruning.methods.dppnet_op  # noqa: F401 - registers the operator that the program may hold

    try:
        program = _dict_to_dataclass(schema.ExportedProgram, data)
        loaded = ExportedProgramDeserializer().deserialize(program, tensors, constants, None)
        for node in loaded.graph_module.graph.nodes:
            target = node.target
            if node.op == "call_function" and not isinstance(target, torch._ops.OpOverload):
                module = getattr(target, "__module__", "")
                if module not in ("_operator", "math", "torch"):
                    raise ValueError(f"operator {target} is not one of PyTorch's tensor operators")
    except Exception as error:
        raise_if_out_of_memory(error)
        # The deserialiser checks little, and fails with assertions, SymPy's errors, missing keys and more.
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(
            f"PyTorch {torch.__version__} cannot read the exported program ({lines[-1].strip()[:200]})",
            file=path,
            remedy=f"{_EXPORT_AGAIN} of this PyTorch version",
        ) from None
    return loaded
