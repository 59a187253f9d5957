"""Run an engine and the graph it was built from on the same inputs, with Polygraphy's comparator.

Polygraphy runs both, the graph in ONNX Runtime. Its element-wise tolerances are not used: the caller decides by the
relative Frobenius error of every output.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtkp.engine.onnxruntime import OrtRunner

if TYPE_CHECKING:
    from trtkp.engine.base import Runner

__all__ = ["run_both"]

Arrays = Mapping[str, npt.NDArray[Any]]
Pair = tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]


def run_both(engine: Runner, onnx: Path, feeds: Sequence[Arrays], *, fuse_qdq: bool = True) -> list[Pair]:
    """Run an engine, and its graph in ONNX Runtime, on the same inputs.

    Args:
        engine: the opened engine.
        onnx: the graph from which it was built.
        feeds: inputs in the engine's types, one entry per run.
        fuse_qdq: as for `OrtRunner`.

    Returns:
        For every run, the outputs of the engine and those of the graph.

    Raises:
        JobError: one of the two failed.
    """
    from polygraphy.backend.base import BaseRunner
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    class EngineRunner(BaseRunner):  # type: ignore[misc]
        """Adapts a `Runner` to Polygraphy's interface."""

        def get_input_metadata_impl(self) -> TensorMetadata:
            metadata = TensorMetadata()
            for spec in engine.inputs:
                shape = [dim if isinstance(dim, int) else None for dim in spec.shape]
                metadata.add(spec.name, np.dtype(spec.dtype), shape)
            return metadata

        def infer_impl(self, feed_dict: Mapping[str, npt.NDArray[Any]]) -> OrderedDict[str, npt.NDArray[Any]]:
            start = perf_counter()
            outputs = OrderedDict(engine.run(feed_dict))
            self.inference_time = perf_counter() - start
            return outputs

    with OrtRunner(onnx, fuse_qdq=fuse_qdq) as reference, G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        # Polygraphy takes any iterable as a data loader and runs one entry after the other.
        results = Comparator.run(
            [EngineRunner(name="engine"), OnnxrtRunner(reference.session, name="onnxruntime")],
            data_loader=[OrderedDict(feed) for feed in feeds],
        )
    ours, theirs = results["engine"], results["onnxruntime"]
    return [(dict(found), dict(wanted)) for found, wanted in zip(ours, theirs, strict=True)]
