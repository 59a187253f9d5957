"""The layers that an engine really runs, out of TensorRT's ``EngineInspector``.

Its JSON changed between versions: a layer is an object or, of an engine that keeps names alone, a string; tensors are
named under ``Name``. What is not there is left empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtkp.engine.trt.context import Engine

__all__ = ["EngineLayer", "parse_layers", "read_layers"]


@dataclass(frozen=True)
class EngineLayer:
    """A layer: its name, operator, and the tensors that it reads and writes."""

    name: str
    op: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def read_layers(engine: Engine) -> list[EngineLayer]:
    """The layers in the order of execution; none where the inspector says nothing."""
    with engine.device.current(), suppress(RuntimeError, ValueError):
        inspector = engine.handle.create_engine_inspector()
        text = inspector.get_engine_information(engine.trt.LayerInformationFormat.JSON)
        return list(parse_layers(text or "{}"))
    return []


def parse_layers(text: str) -> Iterator[EngineLayer]:
    """Layers of an inspector's JSON.

    Raises:
        ValueError: not JSON.
    """
    document = json.loads(text)
    for layer in document.get("Layers", []) if isinstance(document, dict) else []:
        if isinstance(layer, str):
            yield EngineLayer(layer)
        elif isinstance(layer, dict) and "Name" in layer:
            yield EngineLayer(
                str(layer["Name"]),
                _operator(layer),
                tuple(_names(layer.get("Inputs"))),
                (*_names(layer.get("Outputs")), *_sources(layer)),
            )


def _operator(layer: dict[str, Any]) -> str:
    """Of a plugin its own name, which says more."""
    kind = str(layer.get("LayerType", ""))
    return str(layer.get("PluginType") or layer.get("ParameterType") or kind) if "lugin" in kind else kind


def _names(tensors: Any) -> Iterator[str]:
    for tensor in tensors if isinstance(tensors, list) else []:
        yield str(tensor["Name"] if isinstance(tensor, dict) and "Name" in tensor else tensor)


def _sources(layer: dict[str, Any]) -> Iterator[str]:
    """Names of the ONNX nodes that a layer was made of: ``[ONNX Layer: conv1]`` in its metadata, else its own name."""
    metadata = str(layer.get("Metadata", ""))
    marks = [part.split("]", 1)[0].strip() for part in metadata.split("[ONNX Layer:")[1:]]
    yield from marks or [part.strip() for part in str(layer["Name"]).split(" + ")]
