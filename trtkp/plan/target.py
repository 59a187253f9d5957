"""The GPU that a TensorRT engine is planned for: how its layers are predicted and timed, and the plugin as a candidate.

*Predicted*: lowerings to standard operators take the time of the roofline in `trtkp.plan.cost` with the GPU's public
figures. The packed operator takes the time that `trtkp.kernels.prediction` gives for the plugin's best tactic. Both are
seconds on the same GPU, so they can be compared.

*Measured*: the candidates of all layers, each between two cheap neighbours, lie side by side in one engine (or a few,
by the size of their weights), whose profile says what each takes. Whole nets are engines of their own, timed on the GPU
by events. This path is *unverified*: no GPU was available to test it.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from trtkp.cuda.arrays import Activation4d, View
from trtkp.engine import Backend, BuildRequest
from trtkp.engine.feeds import random_feeds
from trtkp.engine.options import RunOptions, TrtOptions
from trtkp.errors import InputError, JobError
from trtkp.graph.edit import ints
from trtkp.graph.ops import DOMAIN, OpName
from trtkp.graph.packing import PackedConv
from trtkp.graph.save import save_graph
from trtkp.graph.sparsity import holds_two_four
from trtkp.kernels.capi import Library, find_library, load_library
from trtkp.kernels.layer import Epilogue, Geometry, Lists, describe, output_pitch
from trtkp.kernels.prediction import LAUNCH_S, Gpu, Layer, Prediction, gpu_like, order
from trtkp.machine.gpu import find_gpus
from trtkp.machine.timing import MIN_RUNS, Timing
from trtkp.plan.cost import Machine
from trtkp.plan.side_by_side import shares, side_by_side
from trtkp.shapes import Shape, ShapeRange, TensorSpec

__all__ = ["EngineTarget", "machine_of", "plugin_nodes"]

#: fp32 multiply-accumulates per cycle and multiprocessor, by compute capability (CUDA C++ Programming Guide, table of
#: arithmetic throughput): 64 on an A100 (8.0), 128 on everything later.
_FP32_MACS = {80: 64}
_FP32_MACS_LATER = 128
#: Untimed and timed rounds, as in `trtkp.plan.race`.
_WARMUP, _RUNS = 3, 30
#: Bytes of workspace beyond which a plugin does not offer a tactic, as in ``plugins/glue/plugin.cpp``.
_MOST_WORKSPACE = 64 << 20
#: Rounds of the race of layers. Each opens the engines anew: an engine that is opened again lies elsewhere in memory.
_ROUNDS, _RUNS_A_ROUND = 10, 3
#: Most engines that one race of layers tries to build. One is enough unless a candidate cannot be built; two of those
#: among 256 are found by halving in 31.
_MOST_BUILDS = 32
#: The oldest compute capability that the kernels run on: they use ``cp.async`` and bf16, which begin with Ampere.
_OLDEST = (8, 0)


@dataclass(frozen=True)
class EngineTarget:
    """A GPU, the plugins that its engines may use, and the backend that builds and opens engines for it.

    Attributes:
        gpu: public figures of the GPU, for predictions.
        library: the plugin library; None if it is not installed or the GPU is too old for it.
        backend: builds and opens engines; None if nothing can be timed.
        precision: precision of the engines.
        level: optimisation level of TensorRT's builder.
        trt: TensorRT options, the same as for the final engine.
        device: number of the GPU, on which engines are timed.
    """

    gpu: Gpu
    library: Library | None = None
    backend: Backend | None = None
    precision: str = "fp32"
    level: int | None = None
    trt: TrtOptions | None = None
    device: int = 0

    @classmethod
    def here(
        cls,
        backend: Backend,
        *,
        precision: str,
        plugins: bool,
        level: int | None = None,
        trt: TrtOptions | None = None,
        device: int = 0,
    ) -> EngineTarget | None:
        """A GPU of this machine as a target; None if there is none of this number."""
        gpu = find_gpus().gpu(device)
        if gpu is None:
            return None
        major, minor = gpu.compute_capability
        figures = gpu_like(
            SimpleNamespace(
                name=gpu.name,
                major=major,
                minor=minor,
                multi_processor_count=gpu.multiprocessors,
                L2_cache_size=gpu.cache_bytes,
            )
        )
        library = installed_plugins() if plugins and (major, minor) >= _OLDEST else None
        return cls(figures, library, backend, precision, level, trt, device)

    @cached_property
    def identity(self) -> str:
        """What measured times depend on besides the graph: GPU, TensorRT's version, plugin library, build options."""
        found = self.backend.availability(self.device).version if self.backend is not None else None
        library = sha256(self.library.path.read_bytes()).hexdigest() if self.library is not None else None
        options = replace(self.trt, timing_cache=None) if self.trt is not None else None
        return repr(("layers side by side", self.gpu.name, found, library, self.precision, self.level, options))

    def predicted_tactic(self, node: ir.Node, packed: PackedConv, source: Shape, target: Shape) -> Prediction:
        """The tactic of the plugin that is predicted to be the fastest for a packed operator, and its time.

        Args:
            node: the packed node.
            packed: its arrays.
            source: shape of the input, [N, C, H, W].
            target: shape of the output, [N, F, P, Q].

        Raises:
            InputError: the library does not compute this layer, or no prediction exists for any of its tactics.
        """
        if self.library is None:
            raise InputError("the plugin library is not installed")
        op = OpName.parse(node.op_type)
        itemsize = packed.weight.dtype.itemsize

        def pitch(channels: int) -> int:  # kHWC8 in 16 bits, kHWC in float32
            return output_pitch(channels) if itemsize == 2 else channels

        x = Activation4d("x", 0, source, (0, 0, 0, 0), packed.weight.dtype.name, pitch(source[1]))
        lists = Lists(packed.weight_shape, packed.groups, packed.base, packed.list_block, packed.two_four)
        desc = describe(
            lists,
            Geometry(ints(node, "strides", (1, 1)), ints(node, "pads", (0,) * 4), ints(node, "dilations", (1, 1))),  # type: ignore[arg-type]  # of these lengths
            Epilogue(op.activation, node.attributes.get_float("alpha", 0.01)),
            x=x,
            index=View("index", 0, packed.index.shape, (0, 0), "int32"),
            rows=len(packed.weight),
            y_pitch=pitch(target[1]),
            residual_pitch=pitch(target[1]) if op.residual else 0,
            has_bias=True,
        )
        layer = Layer.of(desc, *self.library.output_size(desc))
        library = self.library
        names = [name for name in library.tactics(desc) if library.workspace_bytes(desc, name) <= _MOST_WORKSPACE]
        found = order(names, layer, self.gpu)
        if not found:
            raise InputError("no tactic of the plugin can be predicted")
        return found[0]

    def race(
        self, models: Mapping[str, ir.Model], shapes: Mapping[str, Shape], time_limit_s: float
    ) -> dict[str, Timing]:
        """GPU times of several models on the same random inputs, run in turn. Each is built into an engine first.

        Args:
            models: the models, by name.
            shapes: input name to shape.
            time_limit_s: seconds after which no new round starts.

        Raises:
            JobError: an engine could not be built or run.
        """
        backend = self.backend
        assert backend is not None
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtkp-race-")))
            calls = {}
            for number, (name, model) in enumerate(models.items()):
                path = self._built(model, shapes, folder / str(number))
                runner = stack.enter_context(backend.open(path, options=RunOptions(device=self.device)))
                calls[name] = partial(backend.gpu_ms, runner, random_feeds(runner.inputs, shapes, seed=0))
            return _in_turn(calls, time_limit_s)

    def race_layers(
        self, models: Mapping[str, ir.Model], shapes: Mapping[str, Shape], time_limit_s: float, failed: dict[str, str]
    ) -> dict[str, Timing]:
        """GPU times of many single layers, side by side in as few engines as can be built.

        Args:
            models: the layers by slot; see `trtkp.plan.side_by_side`.
            shapes: shape of every input, by its name in the models.
            time_limit_s: seconds after which no new round starts.
            failed: gets the reason for every layer that cannot be built or timed.

        Raises:
            JobError: an engine could not be run.
        """
        backend = self.backend
        assert backend is not None
        samples: dict[str, list[int]] = {slot: [] for slot in models}
        with tempfile.TemporaryDirectory(prefix="trtkp-race-") as folder:
            engines = self._engines(models, shapes, Path(folder), failed)
            start = time.perf_counter()
            for number in range(_ROUNDS):
                if number >= MIN_RUNS and time.perf_counter() - start >= time_limit_s:
                    break
                for path, feeds in engines:
                    profile = backend.profile(path, feeds, runs=_RUNS_A_ROUND, device=self.device)
                    for slot, ms in shares(profile).items():
                        samples[slot].append(round(ms * 1e6))
        for slot in models:
            if not samples[slot]:
                failed.setdefault(slot, "TensorRT's profile does not say what it takes")
        return {slot: Timing.from_nanoseconds(taken) for slot, taken in samples.items() if taken}

    def _engines(
        self, models: Mapping[str, ir.Model], shapes: Mapping[str, Shape], folder: Path, failed: dict[str, str]
    ) -> list[tuple[Path, dict[str, npt.NDArray[Any]]]]:
        """Build the layers into one engine. If that fails, into two of half as many, and so on.

        Returns:
            Every engine with random inputs for it.
        """
        engines, waiting = [], deque([list(models)])
        for number in range(_MOST_BUILDS):
            if not waiting:
                break
            slots = waiting.popleft()
            together = side_by_side({slot: models[slot] for slot in slots})
            inputs = {str(value.name): shapes[str(value.name).partition("/")[2]] for value in together.graph.inputs}
            try:
                engine = self._built(together, inputs, folder / str(number))
            except JobError as error:
                half = len(slots) // 2
                waiting.extend([slots[:half], slots[half:]] if half else [])
                failed.update(dict.fromkeys(slots, error.message))  # those that build in a half are taken out again
                continue
            for slot in slots:
                failed.pop(slot, None)
            specs = [
                TensorSpec(str(value.name), value.dtype.numpy().name, inputs[str(value.name)])  # type: ignore[union-attr]  # typed
                for value in together.graph.inputs
            ]
            engines.append((engine, random_feeds(specs, inputs, seed=0)))
        return engines

    def _built(self, model: ir.Model, shapes: Mapping[str, Shape], folder: Path) -> Path:
        assert self.backend is not None
        folder.mkdir()
        save_graph(model, folder / "model.onnx")
        names = {str(value.name) for value in model.graph.inputs}
        count = plugin_nodes(model)
        built = self.backend.build(
            BuildRequest(
                onnx=folder / "model.onnx",
                output=folder,
                profile={name: ShapeRange(shape, shape, shape) for name, shape in shapes.items() if name in names},
                precision=self.precision,  # type: ignore[arg-type]  # fp32 or fp16
                plugins=self.library.path if self.library is not None and count else None,
                plugin_nodes=count,
                sparse=holds_two_four(model),
                optimization_level=self.level,
                device=self.device,
                # What runs here and now needs its weights, and neither a runtime nor plugins inside.
                trt=replace(
                    self.trt or TrtOptions(),
                    tune_batches=(),  # the race is at one size
                    strip_weights=False,
                    refit=False,
                    version_compatible=False,
                    exclude_lean_runtime=False,
                    embed_plugins=False,
                ),
            )
        )
        return built.files[0]


def installed_plugins() -> Library | None:
    """The plugin library of this installation; None if there is none, or none that can be loaded."""
    try:
        return load_library(find_library())
    except InputError:
        return None


def plugin_nodes(model: ir.Model) -> int:
    """Number of nodes of domain ``trtkp`` in the main graph."""
    return sum(node.domain == DOMAIN for node in model.graph)


def machine_of(gpu: Gpu, itemsize: int) -> Machine:
    """The GPU's figures for the roofline of `trtkp.plan.cost`. fp32 is computed without TF32.

    The rate is the full rate of the data sheet, which no library reaches: in fp16, matrix products of 8192 x 8192 ran
    at 762 of the H100's 989 TFLOP/s (README of waynehacking8/blackwell-tensorcore-kernels). The model of our own
    kernels (`trtkp.kernels.prediction`) is one of bounds as well, so neither side is favoured.

    Example:
        >>> from trtkp.kernels import GPUS
        >>> round(machine_of(GPUS["A100"], itemsize=2).mac_rate / 1e12)
        156
    """
    cycles = gpu.multiprocessors * gpu.clock_hz
    macs = gpu.macs_per_cycle if itemsize == 2 else _FP32_MACS.get(gpu.capability, _FP32_MACS_LATER)
    return Machine(macs * cycles, gpu.bandwidth, LAUNCH_S, overlaps=True)


def _in_turn(calls: Mapping[str, Callable[[], float]], time_limit_s: float) -> dict[str, Timing]:
    """Times that the calls themselves report, in ms. They alternate, round after round, within the time limit."""
    samples: dict[str, list[int]] = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(_WARMUP + _RUNS):
        if number >= _WARMUP + MIN_RUNS and time.perf_counter() - start >= time_limit_s:
            break
        for name, call in calls.items():
            milliseconds = call()
            if number >= _WARMUP:
                samples[name].append(round(milliseconds * 1e6))
    return {name: Timing.from_nanoseconds(taken) for name, taken in samples.items()}
