"""An engine against the graph that its parser was given, by Polygraphy's comparator, with ONNX Runtime beside it.

Polygraphy runs both, holds names and shapes of the outputs against each other and can keep inputs and outputs for its
own command line; what is near enough is ours to say: the relative Frobenius error of every output.
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


def run_both(
    engine: Runner, onnx: Path, feeds: Sequence[Arrays], *, fuse_qdq: bool = True, save: Path | None = None
) -> list[Pair]:
    """Outputs of an engine and of its graph in ONNX Runtime, for every feed.

    Args:
        engine: the opened engine.
        onnx: what it was built from.
        feeds: inputs in the engine's types.
        fuse_qdq: see `OrtRunner`.
        save: folder for ``inputs.json`` and ``outputs.json`` in Polygraphy's format.

    Raises:
        JobError: one of the two failed.
    """
    from polygraphy.backend.base import BaseRunner
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    class EngineRunner(BaseRunner):  # type: ignore[misc]
        """Our runner as one of Polygraphy's."""

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
        # a loader is asked for one feed after the other
        results = Comparator.run(
            [EngineRunner(name="engine"), OnnxrtRunner(reference.session, name="onnxruntime")],
            data_loader=[OrderedDict(feed) for feed in feeds],
            save_inputs_path=None if save is None else str(save / "inputs.json"),
            save_outputs_path=None if save is None else str(save / "outputs.json"),
        )
    ours, theirs = results["engine"], results["onnxruntime"]
    return [(dict(found), dict(wanted)) for found, wanted in zip(ours, theirs, strict=True)]
