"""Exporting a program to a clean ONNX graph whose initialisers have the names of the parameters."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trtkp.errors import InputError, raise_if_out_of_memory
from trtkp.graph.passes.dynamic import add_bodies
from trtkp.model.cleanup import clean_graph, name_outputs, rename_dims
from trtkp.model.pattern_export import translations

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram

__all__ = ["export_graph"]


def export_graph(
    program: ExportedProgram,
    path: Path,
    *,
    names: Mapping[str, str],
    outputs: list[str],
    parameters: Collection[str],
) -> ir.Model:
    """Export a program to ONNX.

    PyTorch's ONNX optimiser stays off, because it folds BatchNormalization into initialisers that keep the name of the
    unfolded weight.

    Args:
        program: the program, in evaluation mode.
        path: its path, for error messages.
        names: size symbol to readable name.
        outputs: names of the graph's outputs, in order.
        parameters: names of the initialisers that stay as they are.

    Raises:
        InputError: an operator cannot be exported.
    """
    import torch

    with _quiet():
        try:
            _forget_derived_ranges(program)
            exported = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, custom_translation_table=translations()
            )
            assert exported is not None
            model = exported.model
            clean_graph(model, parameters)
            add_bodies(model)
            rename_dims(model, names)
            name_outputs(model, outputs)
        except Exception as error:
            raise_if_out_of_memory(error)
            raise InputError(
                f"PyTorch cannot export the model to ONNX ({_reason(error)})",
                file=path,
                remedy="replace the operator in the model, or load an .onnx file",
            ) from None
    model.graph.name = "model"
    return model


def _forget_derived_ranges(program: ExportedProgram) -> None:
    """Forget the ranges of expressions such as ``8*s24``: loading records them, and the exporter fails on them."""
    for node in program.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None and mode.shape_env is not None:
            ranges = mode.shape_env.var_to_range
            for size in [size for size in ranges if not size.is_symbol]:
                del ranges[size]
            return


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause, as the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's remarks on torchvision and on its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    children = [logger, logging.getLogger("torch.onnx._internal.exporter._registration")]
    levels = [child.level for child in children]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for child in children:
            child.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for child, level in zip(children, levels, strict=True):
                child.setLevel(level)
