"""The libraries in the real TensorRT: its lean runtime and TensorRT-RTX, each in processes of its own.

Python's bindings read a plugin's properties but do not call its other functions, so live_host does that in C++.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.emulation.cases import TOLERANCE
from tests.emulation.programs import run
from tests.emulation.test_kernels import compare
from trtkp.graph.passes.pack import pack_convolutions
from trtkp.index.index_set import from_mask
from trtkp.machine.packages import importable
from trtkp.plan.pins import write_pins

from .cases import Field, dynamic_layer, listed_layer
from .test_plugins import lines

HOSTS = [
    pytest.param(
        name, marks=pytest.mark.skipif(not importable(name), reason=f"package {name} is not installed"), id=name
    )
    for name in ("tensorrt_lean", "tensorrt_rtx")
]
NAMES = {"tensorrt_lean": "libnvinfer_lean.so*", "tensorrt_rtx": "libtensorrt_rtx.so*"}
OPERATORS = 84

#: Loads as the arguments say, in order, and prints a list of what came of it.
LOADING = """
import ctypes, importlib, json, sys
trt = importlib.import_module(sys.argv[1])
logger = trt.Logger(trt.Logger.ERROR)
registry = trt.get_plugin_registry()
results = []
for way, path in zip(sys.argv[2::2], sys.argv[3::2]):
    if way == "load":
        result = registry.load_library(path) is not None
    elif way == "register":
        result = bool(ctypes.CDLL(path))
    else:
        result = ctypes.CDLL(path).trtkpRegisterPlugins()
    names = [creator.name for creator in registry.all_creators if creator.plugin_namespace == "trtkp"]
    assert len(names) == len(set(names))
    results.append((result, len(names)))
print(json.dumps(results))
"""


def python(script: str, *arguments: str | Path, status: int = 0) -> str:
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def loaded(host: str, folder: Path, *ways: str) -> list[tuple[Any, int]]:
    """Result and number of our creators after each way of loading."""
    files = {"load": "libtrtkp.so", "register": "libtrtkp_register.so", "call": "libtrtkp.so"}
    arguments = [text for way in ways for text in (way, str(folder / files[way]))]
    output = python(LOADING, host, *arguments)
    return [tuple(each) for each in json.loads(next(line for line in output.splitlines() if line.startswith("[[")))]


@pytest.mark.parametrize("host", HOSTS)
def test_load_library(host: str, libraries: Path) -> None:
    """The second time TensorRT answers null, as all creators are there."""
    assert loaded(host, libraries, "load", "load") == [(True, OPERATORS), (False, OPERATORS)]


@pytest.mark.parametrize("host", HOSTS[:1])
def test_registering_library(host: str, libraries: Path) -> None:
    assert loaded(host, libraries, "register", "register") == [(True, OPERATORS)] * 2
    assert loaded(host, libraries, "load", "register", "call") == [(True, OPERATORS)] * 2 + [(1, OPERATORS)]
    assert loaded(host, libraries, "register", "load") == [(True, OPERATORS), (False, OPERATORS)]
    assert loaded(host, libraries, "call", "call") == [(1, OPERATORS)] * 2


@pytest.mark.parametrize("host", HOSTS[1:])
def test_registering_library_leaves_tensorrt_rtx_alone(host: str, libraries: Path) -> None:
    assert loaded(host, libraries, "register", "call", "load") == [(True, 0), (0, 0), (True, OPERATORS)]


def test_registering_library_without_tensorrt_says_so(libraries: Path) -> None:
    output = python("import ctypes, sys; ctypes.CDLL(sys.argv[1])", libraries / "libtrtkp_register.so")
    assert "no TensorRT is loaded in this process" in output


#: Loads as the build worker and the runtime do.
WORKER = """
import importlib, sys
from pathlib import Path
from trtkp.engine.trt.log import process_logger
from trtkp.engine.trt.plugins import load_plugins, our_creators, refuse_plugins
from trtkp.errors import JobError
trt = importlib.import_module(sys.argv[1])
logger = process_logger(trt)
for path in sys.argv[2:]:
    try:
        load_plugins(trt, Path(path), logger)
    except JobError as error:
        print(error)
    print(len(our_creators(trt)))
try:
    refuse_plugins(trt)
except JobError as error:
    print(error)
"""


@pytest.mark.parametrize("host", HOSTS)
def test_loading_as_the_build_does(host: str, libraries: Path, tmp_path: Path) -> None:
    """The error of a file that is no library, with its reason; the second time; TensorRT-RTX alone is refused."""
    (tmp_path / "empty.so").write_bytes(b"")
    library = libraries / "libtrtkp.so"
    output = python(WORKER, host, tmp_path / "empty.so", library, library).splitlines()
    assert "empty.so: TensorRT cannot load the plugin library: " in output[0]
    assert "file too short" in output[0]
    assert "build it for this machine" in output[0]
    assert output[1:4] == ["0", str(OPERATORS), str(OPERATORS)]
    assert ("TensorRT-RTX supports no plugins" in output[-1]) == (host == "tensorrt_rtx")


#: Loads two TensorRTs and the plugins into both, then has both make a mistake.
BOTH = """
import importlib, sys

def loaded(name):
    trt = importlib.import_module(name)

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
        def log(self, severity, message):
            if "[trtkp]" in message:
                print(name, message, flush=True)

    logger = Logger()
    return trt, logger, getattr(trt, "Builder", trt.Runtime)(logger)

hosts = [loaded(name) for name in sys.argv[2:]]
for trt, *_ in hosts:
    assert trt.get_plugin_registry().load_library(sys.argv[1]) is not None
for trt, *_ in hosts:
    creator = trt.get_plugin_registry().get_creator("StripeConv", "1", "trtkp")
    assert creator.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD) is None
"""


@pytest.mark.skipif(not all(map(importable, NAMES)), reason=f"not all packages are installed: {', '.join(NAMES)}")
@pytest.mark.parametrize("order", [1, -1])
def test_two_tensorrts_in_one_process(order: int, libraries: Path) -> None:
    """Each is told of its own mistake. The lean runtime has no logger where there is no CUDA driver: then on stderr."""
    output = python(BOTH, libraries / "libtrtkp.so", *list(NAMES)[::order]).splitlines()
    message = "[trtkp] StripeConv node: field strides is missing"
    assert output.count(f"tensorrt_rtx {message}") == 1
    assert output.count(f"tensorrt_lean {message}") + output.count(message) == 1


#: Creates plugins through the bindings, reads what they read, and has malformed fields refused.
PLUGINS = """
import importlib, sys
import numpy as np
trt = importlib.import_module(sys.argv[1])
logger = trt.Logger(trt.Logger.ERROR)
registry = trt.get_plugin_registry()

class Recorder(trt.IErrorRecorder):
    def __init__(self):
        trt.IErrorRecorder.__init__(self)
        self.errors = []
    def report_error(self, code, description):
        self.errors.append((code, description))
        return False

recorder = Recorder()
assert registry.load_library(sys.argv[2]) is not None
registry.error_recorder = recorder
creator = registry.get_creator("StripeConvAddLeakyRelu", "1", "trtkp")
INT32, FLOAT32 = trt.PluginFieldType.INT32, trt.PluginFieldType.FLOAT32
good = {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 1], "weight_shape": [8, 4, 3, 3], "group": [1],
        "list_block": [1], "alpha": [0.5]}
CHAR = trt.PluginFieldType.CHAR
assert [(f.name, f.type, f.size) for f in creator.field_names] == [
    *((name, FLOAT32 if name == "alpha" else INT32, len(values)) for name, values in good.items()), ("tactic", CHAR, 0)]

def create(fields, phase=trt.TensorRTPhase.BUILD):
    arrays = {n: np.array(v, v.dtype if isinstance(v, np.ndarray) else np.float32 if n == "alpha" else np.int32)
              for n, v in fields.items()}
    kinds = {"int32": INT32, "float32": FLOAT32, "int64": trt.PluginFieldType.INT64, "int8": trt.PluginFieldType.INT8}
    made = [trt.PluginField(n, a, kinds[a.dtype.name]) for n, a in arrays.items()]
    return creator.create_plugin("conv1", trt.PluginFieldCollection(made), phase)

for phase, extra in ((trt.TensorRTPhase.BUILD, {}), (trt.TensorRTPhase.RUNTIME, {"format_version": [1]})):
    plugin = create(good | extra, phase)
    core, build, runtime = (plugin.get_capability_interface(getattr(trt.PluginCapabilityType, name))
                            for name in ("CORE", "BUILD", "RUNTIME"))
    assert (core.plugin_name, core.plugin_version, core.plugin_namespace) == ("StripeConvAddLeakyRelu", "1", "trtkp")
    assert build.num_outputs == 1
    assert build.timing_cache_id.startswith("StripeConvAddLeakyRelu strides=2,1 pads=1,0,1,0 ")
    assert build.metadata_string.startswith("StripeConvAddLeakyRelu strides=2,1 ")
    for interface, kind in ((plugin, "PLUGIN"), (core, "PLUGIN_V3ONE_CORE"), (build, "PLUGIN_V3ONE_BUILD"),
                            (runtime, "PLUGIN_V3ONE_RUNTIME")):
        info = interface.interface_info
        assert (info.kind, info.major, info.minor) == (kind, 1, 0)

assert create(good, trt.TensorRTPhase.RUNTIME) is None
for name, values, message in (
    ("strides", None, "field strides is missing"),
    ("pads", np.ones(4, np.int64), "field pads is of type another type, not int32"),
    ("pads", [1, 1], "field pads has 2 values, not 4"),
    ("strides", [0, 1], "strideH is 0"),
    ("alpha", [np.nan], "alpha is nan"),
    ("what", [1], "field what is not known"),
):
    recorder.errors.clear()
    assert create({n: v for n, v in (good | {name: values}).items() if v is not None}) is None
    (code, description), = recorder.errors
    assert description.startswith("StripeConvAddLeakyRelu conv1: "), description
    assert message in description, description
print("done")
"""


@pytest.mark.parametrize("host", HOSTS)
def test_plugins_through_the_bindings(host: str, libraries: Path) -> None:
    assert "done" in python(PLUGINS, host, libraries / "libtrtkp.so").splitlines()


def tensorrt_library(host: str) -> Path:
    """The shared library of a Python package."""
    folder = Path(importlib.import_module(f"{host}_libs").__file__ or "").parent
    (library,) = folder.glob(NAMES[host])
    return library


@pytest.mark.parametrize("file", ["libtrtkp.so", "libtrtkp_register.so"])
@pytest.mark.parametrize("host", HOSTS)
def test_every_call_on_plugins_of_a_real_registry(
    host: str, file: str, libraries: Path, live_host: Path, oracle: Any, tmp_path: Path
) -> None:
    """Clone, formats, types, shapes, tactics, engine fields, contexts and enqueue, over emulated kernels."""
    layer, case = listed_layer(3, base="PatternConv", dtype="float16", blocks=False)
    layer.write(tmp_path / "case")
    arguments = [tmp_path / "y", tensorrt_library(host), libraries / file]
    done = run(live_host, "run", tmp_path / "case", *arguments)
    if (host, file) == ("tensorrt_rtx", "libtrtkp_register.so"):
        assert "no creator" in done.stdout
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert "layout checked" in done.stdout
    for tactic in lines(done.stdout, "tactic"):
        compare(*layer.read(tmp_path / f"y.{tactic}"), case.want(oracle), TOLERANCE["float16"])
    refused = replace(layer, fields=(*layer.fields, Field.of("what", [1])))
    refused.write(tmp_path / "case")
    assert "refused" in run(live_host, "create", tmp_path / "case", *arguments).stdout


@pytest.mark.parametrize("host", HOSTS)
def test_dynamic_pattern_of_a_real_registry(
    host: str, libraries: Path, live_host: Path, oracle: Any, tmp_path: Path
) -> None:
    layer, case = dynamic_layer(1, dtype="bfloat16", whole=True)
    layer.write(tmp_path / "case")
    arguments = [tmp_path / "y", tensorrt_library(host), libraries / "libtrtkp.so"]
    done = run(live_host, "run", tmp_path / "case", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    for tactic in lines(done.stdout, "tactic"):
        compare(*layer.read(tmp_path / f"y.{tactic}"), case.want(oracle), TOLERANCE["bfloat16"])


#: Parses a model with a plugin library loaded.
PARSER = """
import sys
import tensorrt_rtx as trt

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        print(message, flush=True)

logger = Logger()
assert trt.get_plugin_registry().load_library(sys.argv[1]) is not None
network = trt.Builder(logger).create_network(0)
print("parsed", trt.OnnxParser(network, logger).parse_from_file(sys.argv[2]), flush=True)
"""


@pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")
def test_the_parser_takes_the_plugin_with_its_attributes(libraries: Path, new_graph: Any, tmp_path: Path) -> None:
    """TensorRT-RTX's parser is TensorRT's. It has no plugin layers: once the plugin is created, the process aborts."""
    rng = np.random.default_rng(0)
    mask = np.zeros((16, 8, 3, 3), bool)
    mask[:, :, 1] = True
    graph = new_graph()
    x = graph.input("x", ("n", 8, 12, 12))
    weight = graph.constant("w", np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32))
    y = graph.op("Conv", x, weight, pads=[1, 0, 1, 2], strides=[2, 1], name="conv1")
    model = graph.model(graph.op("LeakyRelu", y, alpha=0.25))
    (node,) = pack_convolutions(model, {"w": from_mask(mask)}, {})
    write_pins(model, {str(node.name): "sm_90=mma_64x32"})
    ir.save(model, tmp_path / "model.onnx")
    command = [sys.executable, "-c", PARSER, str(libraries / "libtrtkp.so"), str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    settings = "strides=2,1 pads=1,0,1,2 dilations=1,1 weight_shape=16,8,3,3 group=1 list_block=8 alpha=0.25"
    settings += " tactic=sm_90=mma_64x32"
    assert f"[trtkp] StripeConvLeakyRelu {node.name}: {settings}" in done.stdout
    assert "Successfully created plugin: StripeConvLeakyRelu" in done.stdout
    assert done.returncode == -signal.SIGABRT
    assert "parsed" not in done.stdout
