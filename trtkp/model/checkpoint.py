"""State dicts: read the tensors of a checkpoint, make the network with its factory, and fill it with the tensors."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trtkp.errors import InputError, raise_if_out_of_memory
from trtkp.model.zipcheck import CheckedZip

if TYPE_CHECKING:
    import torch

__all__ = ["fill", "make_network", "read_checkpoint", "read_safetensors"]

#: Keys under which training scripts store the weights, in the order in which they are tried.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "ema",
    "model_ema",
    "state_dict_ema",
)
_PREFIXES = ("module.", "_orig_mod.")
_ARCH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SHOWN = 3
_MAX_HEADER = 100 << 20


def read_checkpoint(handle: IO[bytes], path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a ``torch.save`` file, on the CPU. None if it cannot be read without running code.

    Raises:
        InputError: the file is broken, or holds no state dict.
    """
    import pickle

    import torch

    if handle.read(2) == b"PK":
        CheckedZip(handle, path)
    handle.seek(0)
    try:
        data = torch.load(handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Either the file names a class that is not on the safe list, or it is not a pickle at all.
        if "Unsupported" in str(error) or "GLOBAL" in str(error) or "Weights only load failed" in str(error):
            return None
        raise _broken(path, error) from None
    except Exception as error:
        raise_if_out_of_memory(error)
        # A broken file makes the reader raise nearly any exception.
        raise _broken(path, error) from None
    found = _find_tensors(data)
    if found is None:
        keys = f" (keys: {_few(data)})" if isinstance(data, Mapping) else ""
        raise InputError(f"holds no state dict{keys}", file=path, remedy="save model.state_dict() with torch.save")
    return _strip(found)


def read_safetensors(handle: IO[bytes], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` file.

    Raises:
        InputError: the file is broken, or holds no tensors.
    """
    import safetensors.torch

    handle.seek(0)
    data = handle.read()
    if int.from_bytes(data[:8], "little") > min(len(data), _MAX_HEADER):
        raise InputError("the safetensors header is longer than the file", file=path, remedy="copy the file again")
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:
        raise_if_out_of_memory(error)
        raise _broken(path, error) from None
    if not tensors:
        raise InputError("holds no tensors", file=path)
    return _strip(tensors)


def make_network(arch: str, path: Path) -> torch.nn.Module:
    """Import and call a factory, and return the network that it makes.

    Args:
        arch: ``package.module:factory``. It is imported with the current directory on the path. A name of a module
            object instead of a factory is taken as it is.
        path: the checkpoint, for error messages.

    Raises:
        InputError: the name is malformed, cannot be imported, fails when called, or does not give a module.
    """
    import torch

    remedy = "write it as --arch package.module:factory"
    if not _ARCH.fullmatch(arch):
        raise InputError(f"--arch {arch}: not of the form package.module:factory", file=path, remedy=remedy)
    module_name, _, attribute = arch.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
        network = target() if not isinstance(target, torch.nn.Module) else target
    except ModuleNotFoundError as error:
        raise InputError(
            f"--arch {arch}: no module named {error.name}",
            file=path,
            remedy="run in the directory that holds it, or install it",
        ) from None
    except Exception as error:
        raise_if_out_of_memory(error)
        # This is the user's code: whatever it raises becomes one line.
        what = "" if isinstance(error, AttributeError | ImportError) else "calling it failed: "
        raise InputError(f"--arch {arch}: {what}{type(error).__name__}: {error}", file=path, remedy=remedy) from None
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not isinstance(network, torch.nn.Module):
        raise InputError(f"--arch {arch} gives a {type(network).__name__}, not a torch.nn.Module", file=path)
    return network


def fill(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put the tensors into the network, which takes them over without a copy where types agree.

    Raises:
        InputError: keys are missing or unexpected, or tensors have another shape.
    """
    own = network.state_dict()
    # Nothing reads num_batches_tracked in evaluation mode, and old checkpoints lack it.
    missing = [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in tensors if key not in own]
    shapes = [
        f"{key} is {list(tensors[key].shape)}, the network's {list(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {label}: {_few(keys)}"
        for label, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise InputError(
            f"the state dict does not fit the network ({'; '.join(problems)})",
            file=path,
            remedy="give the --arch that it was trained with",
        )
    try:
        # Converted to the network's own types, because checkpoints are often stored in half precision.
        converted = {key: tensor.to(own[key].dtype) for key, tensor in tensors.items()}
        network.load_state_dict(converted, strict=False, assign=True)
    except Exception as error:
        raise_if_out_of_memory(error)
        raise InputError(f"the state dict does not fit the network ({error})", file=path) from None


def _find_tensors(data: Any, depth: int = 0) -> dict[str, torch.Tensor] | None:
    import torch

    if not isinstance(data, Mapping) or depth > 3:
        return None
    if data and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in data.items()):
        return dict(data)
    for name in _WRAPPERS:
        if name in data and (found := _find_tensors(data[name], depth + 1)) is not None:
            return found
    # A bare state dict that has a few other entries, such as the epoch, beside the tensors.
    tensors = {key: value for key, value in data.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    return tensors if any("." in key for key in tensors) else None


def _strip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the prefixes that DataParallel and torch.compile put before every name."""
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
                changed = True
    # PyTorch's AveragedModel (EMA) stores a counter beside the weights, without the prefix.
    if "n_averaged" in tensors and all(name.startswith("module.") or name == "n_averaged" for name in tensors):
        return _strip({name: tensor for name, tensor in tensors.items() if name != "n_averaged"})
    return tensors


def _few(keys: Any) -> str:
    shown = [str(key)[:80] for key in list(keys)[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(keys) > _SHOWN else "")


def _broken(path: Path, error: Exception) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return InputError(f"is damaged or cut off ({lines[0][:160]})", file=path, remedy="copy or save the file again")
