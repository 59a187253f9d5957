"""Running a TensorRT or TensorRT-RTX engine through Polygraphy; *unverified*: written without a GPU at hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtkp.closing import Closing
from trtkp.engine.base import NotRunnableError
from trtkp.engine.feeds import check_feeds
from trtkp.engine.trt_builder import DTYPES
from trtkp.errors import JobError
from trtkp.shapes import Dim, TensorSpec

__all__ = ["TrtEngineRunner", "use_polygraphy_for"]

_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"


def use_polygraphy_for(*, rtx: bool) -> None:
    """Make Polygraphy drive TensorRT-RTX, or TensorRT, in this process.

    Raises:
        NotRunnableError: Polygraphy is missing, or drives the other one here already: it decides once, on import.
    """
    if "polygraphy.config" not in sys.modules:
        os.environ[_SWITCH] = "1" if rtx else "0"
    try:
        from polygraphy import config
    except ImportError:
        raise NotRunnableError("package polygraphy is not installed: pip install polygraphy") from None
    if bool(config.USE_TENSORRT_RTX) != rtx:
        names = ("TensorRT-RTX", "TensorRT")
        wanted, other = names if rtx else names[::-1]
        raise NotRunnableError(
            f"Polygraphy drives {other} in this process and cannot change to {wanted}",
            remedy=f"start with {_SWITCH}={int(rtx)}, or open the two kinds of engine in two processes",
        )


class TrtEngineRunner(Closing):
    """An engine and one execution context on the first GPU, with feeds checked against the optimisation profile."""

    threads: int | None = None

    def __init__(self, path: Path, *, rtx: bool) -> None:
        use_polygraphy_for(rtx=rtx)
        from polygraphy.backend.trt import EngineFromPath, TrtRunner
        from polygraphy.exception import PolygraphyException

        self._failure: type[Exception] = PolygraphyException
        self._file = path
        self._runner: Any = None
        try:
            engine = EngineFromPath(str(path))()
            runner = TrtRunner(engine)
            runner.activate()
        except PolygraphyException as error:
            raise JobError(f"the engine cannot be opened: {error}", file=path) from error
        self._runner = runner
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        self.inputs = tuple(engine_spec(engine, name, is_input=True) for name in inputs)
        self.outputs = tuple(engine_spec(engine, name, is_input=False) for name in names if name not in inputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference; see ``Runner.run``. The outputs are the caller's own."""
        if self._runner is None:
            raise ValueError("the runner is closed")
        checked = check_feeds(self.inputs, feeds)
        try:
            outputs = self._runner.infer(checked)
        except self._failure as error:
            raise JobError(f"the engine failed: {error}", file=self._file) from error
        # The runner uses its host buffers again on the next call.
        return {name: np.array(value) for name, value in outputs.items()}

    def close(self) -> None:
        """Give the context and its GPU memory back."""
        if self._runner is not None:
            self._runner.deactivate()
            self._runner = None


def engine_spec(engine: Any, name: str, *, is_input: bool) -> TensorSpec:
    """Name, dtype and shape of an engine's tensor; dynamic dimensions of an input with their profile's range."""
    shape = [int(size) for size in engine.get_tensor_shape(name)]
    low, high = shape, shape
    if is_input and min(shape, default=0) < 0:
        low, _, high = ([int(size) for size in part] for part in engine.get_tensor_profile_shape(name, 0))
    dims: list[int | Dim] = []
    for axis, size in enumerate(shape):
        if size >= 0:
            dims.append(size)
        elif is_input:
            dims.append(Dim(f"{name}.{axis}", low[axis], high[axis]))
        else:
            dims.append(Dim(f"{name}.{axis}"))
    dtype = engine.get_tensor_dtype(name).name
    return TensorSpec(name, DTYPES.get(dtype, dtype), tuple(dims))
