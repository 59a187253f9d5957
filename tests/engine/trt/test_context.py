"""Reading an engine's tensors and layers, and what the real runtimes say where there is no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trtkp.engine.feeds import check_feeds
from trtkp.engine.trt.context import engine_spec
from trtkp.engine.trt.layers import EngineLayer, parse_layers
from trtkp.errors import InputError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable

_ENGINE = SimpleNamespace(
    get_tensor_shape=lambda name: (-1, 3, 8, 8) if name == "image" else (-1, 10),
    get_tensor_dtype=lambda name: SimpleNamespace(name="HALF"),
    num_optimization_profiles=1,
    get_tensor_profile_shape=lambda name, index: [(1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)],
)


def test_profile_of_an_engine_is_honoured_by_the_feed_check() -> None:
    spec = engine_spec(_ENGINE, "image", is_input=True)
    assert (spec.dtype, spec.shape[1:]) == ("float16", (3, 8, 8))
    assert set(check_feeds([spec], {"image": np.zeros((4, 3, 8, 8), np.float16)})) == {"image"}
    with pytest.raises(InputError, match=r"got float16\[5, 3, 8, 8\].*= 1\.\.4"):
        check_feeds([spec], {"image": np.zeros((5, 3, 8, 8), np.float16)})
    assert engine_spec(_ENGINE, "logits", is_input=False).shape[1] == 10


_INSPECTED = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8]}],
            "Outputs": [{"Name": "r1"}],
        },
        {
            "Name": "__myl_Reso_0",
            "LayerType": "kgen",
            "Inputs": ["r1"],
            "Outputs": [{"Name": "s"}],
            "Metadata": "[ONNX Layer: add][ONNX Layer: relu2]",
        },
        {"Name": "conv2", "LayerType": "PluginV3", "PluginType": "StripeConvRelu", "Outputs": [{"Name": "y"}]},
        "a name alone",
    ],
    "Bindings": ["x", "y"],
}


def test_layers_of_an_inspector() -> None:
    assert list(parse_layers(json.dumps(_INSPECTED))) == [
        EngineLayer("conv1 + relu1", "CaskConvolution", ("x",), ("r1", "conv1", "relu1")),
        EngineLayer("__myl_Reso_0", "kgen", ("r1",), ("s", "add", "relu2")),
        EngineLayer("conv2", "StripeConvRelu", (), ("y", "conv2")),
        EngineLayer("a name alone"),
    ]
    assert list(parse_layers("{}")) == []
    assert list(parse_layers("[]")) == []


#: Opens an engine with a real runtime, on a device that computes nothing.
_OPEN = """
import importlib, sys
from pathlib import Path
from tests.cuda.recording_device import RecordingDevice
from trtkp.errors import JobError
from trtkp.engine.trt.context import Engine
try:
    Engine(importlib.import_module(sys.argv[1]), Path(sys.argv[2]), RecordingDevice())
except JobError as error:
    print(error)
"""


@pytest.mark.skipif(bool(find_gpus().gpus), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("tensorrt_lean", "TensorRT cannot start: createInferRuntime: "),
        ("tensorrt_rtx", "the engine cannot be opened: IRuntime::deserializeCudaEngine: "),
    ],
)
def test_real_runtimes_without_a_gpu_say_why_and_do_not_crash(tmp_path: Path, module: str, words: str) -> None:
    """The lean runtime gives an object that ends the process when it is used; the log has to be asked first."""
    if not importable(module):
        pytest.skip(f"package {module} is not installed")
    (tmp_path / "model.engine").write_bytes(b"x" * 300)
    command = [sys.executable, "-c", _OPEN, module, str(tmp_path / "model.engine")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert "model.engine" in done.stdout
