"""Read the layers that an engine executes from TensorRT's ``EngineInspector``.

The inspector's JSON differs between versions and engines. A layer is an object, or only its name where the engine was
built without detailed profiling information. Fields that are missing stay empty.
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
    """A layer: its name, its operator, and the names of the tensors it reads and writes."""

    name: str
    op: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def read_layers(engine: Engine) -> list[EngineLayer]:
    """Return the layers in the order of execution; an empty list where the inspector gives no information."""
    with engine.device.current(), suppress(RuntimeError, ValueError):
        inspector = engine.handle.create_engine_inspector()
        text = inspector.get_engine_information(engine.trt.LayerInformationFormat.JSON)
        return list(parse_layers(text or "{}"))
    return []


def parse_layers(text: str) -> Iterator[EngineLayer]:
    """Yield the layers of an inspector's JSON document.

    Raises:
        ValueError: the text is not JSON.

    Example:
        >>> text = '{"Layers": [{"Name": "conv1 + relu1", "LayerType": "Convolution"}]}'
        >>> next(parse_layers(text)).op
        'Convolution'
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
    """The operator of a layer; for a plugin layer the plugin's name, since its layer type is only ``PluginV3``."""
    kind = str(layer.get("LayerType", ""))
    return str(layer.get("PluginType") or layer.get("ParameterType") or kind) if "lugin" in kind else kind


def _names(tensors: Any) -> Iterator[str]:
    for tensor in tensors if isinstance(tensors, list) else []:
        yield str(tensor["Name"] if isinstance(tensor, dict) and "Name" in tensor else tensor)


def _sources(layer: dict[str, Any]) -> Iterator[str]:
    """Names of the ONNX nodes fused into a layer.

    They stand in its metadata as ``[ONNX Layer: conv1]``. Without metadata, they are read from the layer's name, in
    which TensorRT joins them by `` + ``.
    """
    metadata = str(layer.get("Metadata", ""))
    marks = [part.split("]", 1)[0].strip() for part in metadata.split("[ONNX Layer:")[1:]]
    yield from marks or [part.strip() for part in str(layer["Name"]).split(" + ")]
