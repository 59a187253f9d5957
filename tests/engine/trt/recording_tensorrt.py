"""A stand-in for the module ``tensorrt`` that records what it is asked and computes with ONNX Runtime.

Its engines hold the ONNX graph that the builder was given, and its contexts run it on the memory whose addresses they
were told, in the order of the stream that they were told. It keeps TensorRT's rules that a caller can break: shapes
within the profile, every address set, nothing captured before a run at the same shapes, errors in the log and not in
exceptions. It proves the calls and their order; what TensorRT does with them it cannot.

A test sets `FAULTS` to make a call fail in the way in which TensorRT's does.
"""

from __future__ import annotations

import ctypes
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.cuda.recording_device import stream_of

__version__ = "11.4.0"

MAGIC = b"ptrt"
#: What the tests look at: settings of the last configuration, libraries that were loaded.
RECORD: dict[str, Any] = {}
#: What a test adds to every output, as a miscompiled engine would.
FAULT = 0.0
#: What goes wrong: "standard plugins", "parser", "profile", "plan", "cache is None", "cache raises",
#: "set_timing_cache", "combine", "combine raises", "serialize".
FAULTS: set[str] = set()
#: Libraries of the plugins that the parser took, as it reports them.
VC_LIBRARIES = {"RoiAlign": "/usr/lib/libnvinfer_vc_plugin.so.11"}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProfiler:
    pass


class IProgressMonitor:
    pass


class LayerInformationFormat:
    JSON = "json"


class _Enum:
    def __init__(self, *names: str) -> None:
        self.__members__ = {name: index for index, name in enumerate(names)}
        vars(self).update(self.__members__)


NetworkDefinitionCreationFlag = _Enum("EXPLICIT_BATCH", "STRONGLY_TYPED")
BuilderFlag = _Enum(
    "TF32", "REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE", "EDITABLE_TIMING_CACHE", "SPARSE_WEIGHTS", "REFIT_IDENTICAL",
    "EXCLUDE_LEAN_RUNTIME",
)  # fmt: skip
DataType = _Enum("FLOAT", "HALF", "BF16", "INT8", "FP8", "INT32", "INT64")
PluginCapabilityType = _Enum("CORE", "BUILD", "RUNTIME")
HardwareCompatibilityLevel = _Enum("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
MemoryPoolType = _Enum("WORKSPACE")
ProfilingVerbosity = _Enum("LAYER_NAMES_ONLY", "DETAILED")

_KINDS = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.INT64: "INT64"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
float16, bfloat16 = "HALF", "BF16"


class IBuilderConfig:
    plugins_to_serialize: list[str] = []  # noqa: RUF012 - only its presence is asked for


class _Registry:
    def __init__(self) -> None:
        self.all_creators: list[SimpleNamespace] = []

    def load_library(self, path: str) -> object | None:
        if any(creator.plugin_namespace == "trtkp" for creator in self.all_creators) or not Path(path).is_file():
            return None
        RECORD["library"] = path
        self.all_creators.append(SimpleNamespace(name="KernelIndexConv", plugin_namespace="trtkp"))
        return object()

    def has(self, name: str, namespace: str) -> bool:
        return any((creator.name, creator.plugin_namespace) == (name, namespace) for creator in self.all_creators)


#: Operators that plugins of TensorRT's own compute: name of the plugin, and type of its layer.
_STANDARD = {"RoiAlign": ("ROIAlign_TRT", "PLUGIN_V3"), "EfficientNMS_TRT": ("EfficientNMS_TRT", "PLUGIN_V2")}

_registry = _Registry()


def get_plugin_registry() -> _Registry:
    return _registry


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    if "standard plugins" in FAULTS:
        return False
    for name, _ in _STANDARD.values():
        if not _registry.has(name, namespace):
            _registry.all_creators.append(SimpleNamespace(name=name, plugin_namespace=namespace))
    return True


class ILayer:
    """What ``get_layer`` returns, whatever the layer is; a caller that wants more sets the class."""

    def __init__(self, name: str, kind: str, namespace: str, dtype: Any) -> None:
        self.name, self.type, self._namespace = name, SimpleNamespace(name=kind), namespace
        self.get_output = lambda index: SimpleNamespace(dtype=dtype)


class IPluginV3Layer(ILayer):
    @property
    def plugin(self) -> SimpleNamespace:
        if self.type.name != "PLUGIN_V3":
            raise RuntimeError(f"layer {self.name} is a {self.type.name}")
        cores = {PluginCapabilityType.CORE: SimpleNamespace(plugin_namespace=self._namespace)}  # type: ignore[attr-defined]
        return SimpleNamespace(get_capability_interface=cores.get)


# --- build ------------------------------------------------------------------------------------------------------------


class Builder:
    max_threads = 1

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> SimpleNamespace:
        RECORD["network_flags"] = flags
        return SimpleNamespace(model=None, layers=[], inputs=[], parser=lambda: None)

    def create_builder_config(self) -> _Config:
        RECORD["config"] = _Config()
        return RECORD["config"]

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: Any, config: _Config) -> bytes | None:
        if network.parser() is None or "plan" in FAULTS:
            words = "no tactic fits" if network.parser() is not None else "the weights were freed with the parser"
            line = f"IBuilder::buildSerializedNetwork: {words}"
            self.logger.log(ILogger.ERROR, line)
            return None
        if config.progress_monitor is not None:
            config.progress_monitor.phase_start("Building engine", None, 2)
            config.progress_monitor.step_complete("Building engine", 0)
            config.progress_monitor.phase_finish("Building engine")
        header = {
            "profiles": [profile.shapes for profile in config.profiles],
            "compatible": BuilderFlag.VERSION_COMPATIBLE in config.flags,  # type: ignore[attr-defined]
            "lean": BuilderFlag.EXCLUDE_LEAN_RUNTIME not in config.flags,  # type: ignore[attr-defined]
            "carried": [Path(name).name for name in config.plugins_to_serialize],
            "stripped": BuilderFlag.STRIP_PLAN in config.flags,  # type: ignore[attr-defined]
            "layers": [[layer.name, layer.type.name, layer._namespace] for layer in network.layers],
        }
        text = json.dumps(header).encode()
        return MAGIC + len(text).to_bytes(4, "little") + text + network.model


class _Cache:
    def __init__(self, content: bytes) -> None:
        self.entries = set(content.split())

    def combine(self, other: _Cache, ignore_mismatch: bool) -> bool:
        if "combine raises" in FAULTS:
            raise RuntimeError("ITimingCache::combine: caches of two GPUs")
        if "combine" in FAULTS:
            return False
        self.entries |= other.entries
        return True

    def serialize(self) -> bytes | None:
        return None if "serialize" in FAULTS else b" ".join(sorted(self.entries | {b"timed"}))


class _Config:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[_Profile] = []
        self.plugins_to_serialize: list[str] = []
        self.progress_monitor: Any = None
        self.limits: dict[int, int] = {}
        self._cache: _Cache | None = None

    def set_flag(self, flag: int) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: int) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self.limits[pool] = size

    def add_optimization_profile(self, profile: _Profile) -> int:
        if "profile" in FAULTS:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> _Cache | None:
        if "cache raises" in FAULTS:
            raise RuntimeError("createTimingCache: out of memory")
        return None if "cache is None" in FAULTS or not content.isascii() else _Cache(content)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        if "set_timing_cache" in FAULTS and cache.entries:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> _Cache | None:
        return self._cache


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]


class OnnxParser:
    """Takes the plugin for a node that names its namespace, where one is registered, and the body elsewhere.

    It owns the weights: a network that outlives it cannot be built.
    """

    def __init__(self, network: Any, logger: Any) -> None:
        self.network, self.logger = network, logger
        self._errors: list[tuple[str, str, str]] = []
        self._libraries: list[str] = []
        network.parser = weakref.ref(self)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> SimpleNamespace:
        desc, op, name = self._errors[index]
        return SimpleNamespace(
            desc=lambda: desc, node_operator=lambda: op, node_name=lambda: name, node=lambda: index, code=lambda: 8
        )

    def get_used_vc_plugin_libraries(self) -> list[str]:
        return self._libraries

    def parse_from_file(self, path: str) -> bool:
        model = onnx.load(path)
        network = self.network
        network.model = model.SerializeToString()
        dtype = _KINDS[model.graph.input[0].type.tensor_type.elem_type]
        for node in model.graph.node:
            network.layers.append(ILayer(node.name, *self._kind(node), dtype))
        for value in model.graph.input:
            dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
            kind = SimpleNamespace(name=_KINDS[value.type.tensor_type.elem_type])
            network.inputs.append(SimpleNamespace(name=value.name, shape=dims, dtype=kind, is_shape_tensor=False))
        network.num_layers, network.num_inputs = len(network.layers), len(network.inputs)
        network.num_outputs = len(model.graph.output)
        network.get_layer, network.get_input = network.layers.__getitem__, network.inputs.__getitem__
        return not self._errors

    def _kind(self, node: Any) -> tuple[str, str]:
        """The type of a node's layer, and the namespace of its plugin."""
        if "parser" in FAULTS:
            self._errors.append(("unsupported attribute", node.op_type, node.name))
        if any(attribute.name == "plugin_namespace" for attribute in node.attribute) and any(
            creator.plugin_namespace == node.domain for creator in _registry.all_creators
        ):
            return "PLUGIN_V3", node.domain
        if node.op_type in _STANDARD:
            name, kind = _STANDARD[node.op_type]
            if not _registry.has(name, ""):
                self._errors.append((f"Plugin not found: {name}", node.op_type, node.name))
            if node.op_type in VC_LIBRARIES:
                self._libraries.append(VC_LIBRARIES[node.op_type])
            return kind, ""
        return {"Conv": "CONVOLUTION"}.get(node.op_type, "ELEMENTWISE"), ""


# --- run --------------------------------------------------------------------------------------------------------------


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, content: bytes) -> ICudaEngine | None:
        if not content.startswith(MAGIC):
            self.logger.log(ILogger.ERROR, "IRuntime::deserializeCudaEngine: magicTag == kEXPECTED_MAGIC_TAG failed")
            return None
        end = 8 + int.from_bytes(content[4:8], "little")
        header = json.loads(content[8:end])
        # with the flag a plan carries the lean runtime, and the plugins that were named; without it none
        code = header["compatible"] and (header["lean"] or header["carried"])
        if code and not self.engine_host_code_allowed:
            self.logger.log(ILogger.ERROR, "IRuntime::deserializeCudaEngine: the plan needs setEngineHostCodeAllowed")
            return None
        spaces = {creator.plugin_namespace for creator in _registry.all_creators}
        spaces |= {"trtkp" if "trtkp" in name else "" for name in header["carried"]}
        for name, kind, space in header["layers"]:
            if kind.startswith("PLUGIN") and space not in spaces:
                words = f"getCreator: could not find plugin KernelIndexConv version 1 in {space!r} for {name}"
                self.logger.log(ILogger.ERROR, words)
                return None
        return ICudaEngine(header, content[end:], self.logger)


class ICudaEngine:
    def __init__(self, header: dict[str, Any], model: bytes, logger: Any) -> None:
        self.header, self.logger = header, logger
        self.weights = 0.0 if header["stripped"] else 1.0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._io = [(v, "INPUT") for v in self.session.get_inputs()] + [
            (v, "OUTPUT") for v in self.session.get_outputs()
        ]
        self.num_io_tensors = len(self._io)
        self.num_optimization_profiles = len(header["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return str(self._io[index][0].name)

    def _value(self, name: str) -> Any:
        return next(value for value, _ in self._io if value.name == name)

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=next(mode for value, mode in self._io if value.name == name))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._value(name).shape)

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        kinds = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
        return SimpleNamespace(name=kinds[self._value(name).type])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        return self.header["profiles"][index][name]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> SimpleNamespace:
        layers = [
            {"Name": name, "LayerType": "PluginV3", "PluginType": "KernelIndexConv"}
            if kind == "PLUGIN_V3"
            else {"Name": name, "LayerType": "CaskConvolution" if kind == "CONVOLUTION" else "PointWise"}
            for name, kind, _ in self.header["layers"]
        ]
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers, "Bindings": []}))


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self.engine, self.logger, self.model = engine, logger, None

    def refit_cuda_engine(self) -> bool:
        self.engine.weights = 1.0
        return self.model is not None


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter, self.logger = refitter, logger

    def refit_from_file(self, path: str) -> bool:
        if not Path(path).is_file():
            self.logger.log(ILogger.ERROR, "refitFromFile: no such file")
            return False
        self.refitter.model = path
        return True


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.active_optimization_profile = 0
        self._enqueued: dict[str, tuple[int, ...]] | None = None

    def _error(self, text: str) -> bool:
        line = f"IExecutionContext::{text}"
        self.engine.logger.log(ILogger.ERROR, line)
        return False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        stream_of(stream_handle)
        if not profile_index < self.engine.num_optimization_profiles:
            return self._error(f"setOptimizationProfileAsync: no profile {profile_index}")
        self.active_optimization_profile = profile_index
        self.shapes.clear()  # and the caller sets them again
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.header["profiles"][self.active_optimization_profile][name]
        if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return self._error(f"setInputShape: {name} {list(shape)} is not in [{low}, {high}]")
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [value.name for value in self.engine.session.get_inputs() if value.name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        zeros = {
            value.name: np.zeros(self.shapes[value.name], _NUMPY[self.engine.get_tensor_dtype(value.name).name])
            for value in self.engine.session.get_inputs()
        }
        (found,) = self.engine.session.run([name], zeros)
        return tuple(found.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = stream_of(stream_handle)
        if stream.captured is not None and self._enqueued != self.shapes:
            return self._error("enqueueV3: shapes changed, run once before the capture")
        self._enqueued = dict(self.shapes)
        shapes, addresses, profiler = dict(self.shapes), dict(self.addresses), self.profiler
        missing = [name for name in (self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors))
                   if name not in addresses]  # fmt: skip
        if missing:
            return self._error(f"enqueueV3: no address of {missing[0]}")
        session, weights = self.engine.session, self.engine.weights

        def compute() -> None:
            feeds = {v.name: self._array(v.name, shapes[v.name], addresses) for v in session.get_inputs()}
            names = [value.name for value in session.get_outputs()]
            for name, found in zip(names, session.run(names, feeds), strict=True):
                self._array(name, found.shape, addresses)[...] = found * weights + FAULT

        stream.submit(compute)
        if profiler is not None:
            for number, (name, *_) in enumerate(self.engine.header["layers"]):
                profiler.report_layer_time(name, (number + 1) / 100)
        return True

    def _array(self, name: str, shape: tuple[int, ...], addresses: dict[str, int]) -> np.ndarray[Any, Any]:
        dtype = np.dtype(_NUMPY[self.engine.get_tensor_dtype(name).name])
        size = dtype.itemsize * int(np.prod(shape))
        memory = (ctypes.c_uint8 * size).from_address(addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)
