"""``load_model``: load a model file of any supported format as a `SourceModel`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trtkp.errors import InputError
from trtkp.model.files import digest_of, open_model, sniff
from trtkp.model.source import SourceModel
from trtkp.shapes import Shape, TensorSpec, make_profile, parse_shape_options

if TYPE_CHECKING:
    import torch

__all__ = ["load_model"]

_TRUST = "use --trust-pickle if you trust its origin, or save it with torch.export.save"


def load_model(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    input_shape: Mapping[str, Shape] | Sequence[str] | None = None,
    trust_pickle: bool = False,
) -> SourceModel:
    """Load a trained model. Its format is found from its content. Nothing in the file is executed unless trusted.

    Args:
        path: an exported program, a state dict, an ONNX file, a TorchScript archive or a pickled module.
        arch: ``package.module:factory`` of the network; needed for a state dict.
        input_shape: shape by input name, or ``["1x3x224x224"]``, or ``["image:1x3x224x224", ...]``. Needed if the file
            records no shapes; otherwise checked against the model's own.
        trust_pickle: allow formats that are code, which are TorchScript and pickled modules.

    Raises:
        InputError: the file is missing, broken, hostile or of an unknown format, or an option that it needs is missing.
    """
    path = Path(path)
    with open_model(path) as handle:
        content = sniff(handle, path)
        if content == "onnx":
            from trtkp.model.onnx_backend import load_onnx

            model = load_onnx(handle, path)
        else:
            digest = digest_of(handle)
            if content == "program":
                model = _load_program(handle, path, digest)
            elif content == "torchscript":
                model = _load_script(handle, path, digest, input_shape, trust_pickle)
            elif content == "aotinductor":
                raise InputError("is compiled code (AOTInductor)", file=path, remedy="use torch.export.save instead")
            else:
                model = _load_checkpoint(handle, path, digest, content, arch, input_shape, trust_pickle)
    if arch is not None and model.format != "state-dict":
        model.warnings.append(f"--arch is not used: the {model.format} file brings its own network")
    if input_shape and model.format in ("pt2", "onnx"):
        _check_shape(input_shape, model.inputs)
    return model


def _load_program(handle: IO[bytes], path: Path, digest: str) -> SourceModel:
    from trtkp.model.archive import load_program
    from trtkp.model.torch_backend import TorchBackend

    return SourceModel(path, "pt2", digest, TorchBackend(load_program(handle, path), path))


def _load_script(
    handle: IO[bytes],
    path: Path,
    digest: str,
    input_shape: Mapping[str, Shape] | Sequence[str] | None,
    trust: bool,
) -> SourceModel:
    if not trust:
        raise InputError("is TorchScript, which is code", file=path, remedy=_TRUST)
    from trtkp.model.eager import export_module, load_script
    from trtkp.model.torch_backend import TorchBackend

    notes: list[str] = []
    module, names = load_script(handle, input_shape, path)
    module = _unlocked(module)
    program = export_module(module, input_shape, path, notes, names=names)
    return SourceModel(path, "torchscript", digest, TorchBackend(program, path), notes)


def _load_checkpoint(
    handle: IO[bytes],
    path: Path,
    digest: str,
    content: str,
    arch: str | None,
    input_shape: Mapping[str, Shape] | Sequence[str] | None,
    trust: bool,
) -> SourceModel:
    from trtkp.model.checkpoint import fill, make_network, read_checkpoint, read_safetensors
    from trtkp.model.eager import export_module, load_pickled
    from trtkp.model.torch_backend import TorchBackend

    tensors = read_safetensors(handle, path) if content == "safetensors" else read_checkpoint(handle, path)
    notes: list[str] = []
    if tensors is None:
        if not trust:
            raise InputError("is a pickle of more than tensors, which is code", file=path, remedy=_TRUST)
        network, kind = load_pickled(handle, path), "pickle"
    elif arch is None:
        keys = ", ".join(list(tensors)[:3]) + (", ..." if len(tensors) > 3 else "")
        raise InputError(
            f"is a state dict of {len(tensors)} tensors without a network ({keys})",
            file=path,
            remedy="name the network with --arch package.module:factory",
        )
    else:
        network, kind = make_network(arch, path), "state-dict"
        fill(network, tensors, path)
    program = export_module(network, input_shape, path, notes)
    backend = TorchBackend(program, path, original=network)
    return SourceModel(path, "pickle" if kind == "pickle" else "state-dict", digest, backend, notes)


def _unlocked(module: torch.nn.Module) -> torch.nn.Module:
    """Make ``eval()`` do nothing: modules of exported programs refuse it, and these are in evaluation mode already."""
    module.eval = lambda: module  # type: ignore[method-assign]
    return module


def _check_shape(input_shape: Mapping[str, Shape] | Sequence[str], specs: tuple[TensorSpec, ...]) -> None:
    shapes = input_shape if isinstance(input_shape, Mapping) else parse_shape_options(
        list(input_shape), list(specs), "--input-shape"
    )  # fmt: skip
    make_profile(specs, shapes, shapes, shapes)
