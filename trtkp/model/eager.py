"""Exporting a live module: a network filled from a state dict, a pickled module, or a converted TorchScript archive."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trtkp.errors import InputError, raise_if_out_of_memory
from trtkp.shapes import Shape, TensorSpec, parse_shape_options

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["ShapeOption", "export_module", "load_pickled", "load_script"]

ShapeOption = Mapping[str, Shape] | Sequence[str] | None


def export_module(
    module: torch.nn.Module, shapes: ShapeOption, path: Path, notes: list[str], *, names: list[str] | None = None
) -> ExportedProgram:
    """Export a module in evaluation mode. The first dimension of its inputs is dynamic if the model allows it.

    Args:
        module: the module, on the CPU. It is put into evaluation mode.
        shapes: one shape per input, as a mapping or as the strings of ``--input-shape``.
        path: the model file, for error messages.
        notes: gets a message if the batch had to stay static.
        names: names of the inputs, if ``module.forward`` does not tell them.

    Raises:
        InputError: a shape is missing or not one that the model takes, or the model cannot be exported.
    """
    import torch

    module.eval()
    given = _shapes(module, shapes, path, names)
    batches = {shape[0] for shape in given.values()}
    failure: Exception | None = None
    if len(batches) == 1:
        # torch.export would treat a batch of 1 as a constant.
        batch = max(2, *batches)
        feeds = tuple(torch.zeros(batch, *shape[1:]) for shape in given.values())
        dim = torch.export.Dim("batch", min=1)
        try:
            return _export(module, feeds, tuple({0: dim} for _ in feeds))
        except Exception as error:
            raise_if_out_of_memory(error)
            failure = error
    feeds = tuple(torch.zeros(*shape) for shape in given.values())
    try:
        program = _export(module, feeds, None)
    except Exception as error:
        raise_if_out_of_memory(error)
        shown = ", ".join("x".join(map(str, shape)) for shape in given.values())
        raise InputError(
            f"PyTorch cannot export the model with input {shown} ({_first_line(error)})",
            file=path,
            remedy="check --input-shape, or export it yourself with torch.export.export and torch.export.save",
        ) from None
    reason = _first_line(failure) if failure else "the inputs differ in their first dimension"
    notes.append(f"the batch is fixed at the given shape: the model cannot be exported with a dynamic one ({reason})")
    return program


def load_pickled(handle: IO[bytes], path: Path) -> torch.nn.Module:
    """Unpickle a module from a file that the user trusts: this runs code from the file.

    Raises:
        InputError: unpickling failed, or gave something other than a module.
    """
    import torch

    handle.seek(0)
    try:
        data = torch.load(handle, map_location="cpu", weights_only=False)
    except Exception as error:
        raise_if_out_of_memory(error)
        raise InputError(
            f"cannot be unpickled ({type(error).__name__}: {_first_line(error)})",
            file=path,
            remedy="run where the model's classes can be imported",
        ) from None
    for key in ("model", "net", "ema", "module"):
        if isinstance(data, Mapping) and isinstance(data.get(key), torch.nn.Module):
            data = data[key]
    if not isinstance(data, torch.nn.Module):
        raise InputError(f"holds a pickled {type(data).__name__}, not a module", file=path)
    # Checkpoints are often stored in half precision, but the reference is float32.
    return data.float()


def load_script(handle: IO[bytes], shapes: ShapeOption, path: Path) -> tuple[torch.nn.Module, list[str]]:
    """A trusted TorchScript archive as an ordinary module with its parameter names, and the names of its inputs.

    It uses PyTorch's converter from TorchScript to exported programs, because the legacy ONNX exporter loses the names.

    Raises:
        InputError: the archive cannot be loaded or converted.
    """
    import torch
    from torch._export.converter import TS2EPConverter

    handle.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = torch.jit.load(io.BytesIO(handle.read()), map_location="cpu").eval()
    except Exception as error:
        raise_if_out_of_memory(error)
        raise InputError(f"cannot be loaded as TorchScript ({_first_line(error)})", file=path) from None
    names = [value.debugName().replace(".", "_") for value in list(script.graph.inputs())[1:]]
    given = _shapes(script, shapes, path, names)
    feeds = tuple(torch.zeros(max(2, shape[0]), *shape[1:]) for shape in given.values())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = TS2EPConverter(script, feeds, {}).convert().module(check_guards=False)
    except Exception as error:
        raise_if_out_of_memory(error)
        raise InputError(
            f"PyTorch cannot convert the TorchScript model ({_first_line(error)})",
            file=path,
            remedy="save the original model with torch.export.save",
        ) from None
    _restore_parameters(module, script)
    return module, names


def _restore_parameters(module: Any, script: torch.nn.Module) -> None:
    """Turn buffers back into parameters, as the converter makes buffers of all parameters."""
    import torch

    for name, parameter in script.named_parameters():
        owner_name, _, leaf = name.rpartition(".")
        try:
            owner = module.get_submodule(owner_name)
        except AttributeError:
            continue
        if leaf in owner._buffers:
            del owner._buffers[leaf]
            owner.register_parameter(leaf, torch.nn.Parameter(parameter.detach()))


def _export(module: torch.nn.Module, feeds: tuple[torch.Tensor, ...], dynamic: Any) -> ExportedProgram:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, feeds, dynamic_shapes=dynamic, strict=False)


def _shapes(
    module: torch.nn.Module, shapes: ShapeOption, path: Path, names: list[str] | None = None
) -> dict[str, Shape]:
    names = names or _input_names(module)
    example = "x".join(map(str, (1, 3, 224, 224)))
    if not shapes:
        raise InputError(
            f"the file does not say the shape of its input{'s' if len(names) > 1 else ''} {', '.join(names)}",
            file=path,
            remedy=f"give --input-shape {example if len(names) == 1 else f'{names[0]}:{example}'}",
        )
    if not isinstance(shapes, Mapping):
        shapes = parse_shape_options(list(shapes), [TensorSpec(name, "float32", ()) for name in names], "--input-shape")
    missing = [name for name in names if name not in shapes]
    unknown = [name for name in shapes if name not in names]
    if missing or unknown:
        raise InputError(
            f"--input-shape is given for {', '.join(shapes)}, the inputs are {', '.join(names)}",
            file=path,
            remedy="give one shape for each input",
        )
    return {name: tuple(shapes[name]) for name in names}


def _input_names(module: torch.nn.Module) -> list[str]:
    """Names of the arguments of ``forward`` that have no default."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return required or ["x"]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
