"""Real TensorRT-RTX builds, on any machine: the parser, the targets, the profile, and a worker that may die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.engine.graphs import conv_net, image_profile
from trtkp.engine import BuildRequest
from trtkp.engine.options import TrtOptions
from trtkp.engine.trt import builder as trt_builder
from trtkp.engine.trt import config as trt_config
from trtkp.engine.trt import plugins as trt_plugins
from trtkp.engine.trt import process as trt_process
from trtkp.engine.trt.log import make_logger
from trtkp.engine.trt.tensorrt_rtx import TensorRTRTXBackend
from trtkp.engine.trt.worker import decode_request, encode_request
from trtkp.errors import InputError, JobError, NotRunnableError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable
from trtkp.shapes import ShapeRange

needs_rtx = pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("net") / "net.onnx")


@needs_rtx
def test_fp32_for_one_target(net: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    request = BuildRequest(net, tmp_path, image_profile(), targets=("sm86",), optimization_level=2)
    request = replace(request, trt=TrtOptions(tune_batches=(1,)))
    result = TensorRTRTXBackend().build(request, lambda *step: seen.append(step))
    assert result.files == (tmp_path / "model.engine",)
    assert [file.name for file in tmp_path.iterdir()] == ["model.engine"]
    assert result.targets == ("sm86",)
    assert result.engine_bytes == result.files[0].stat().st_size > net.stat().st_size
    assert result.version
    assert result.seconds > 0
    assert result.peak_bytes is not None
    assert result.peak_bytes > 50 << 20
    assert result.warnings == ()
    phases = {phase for phase, _, _ in seen}
    assert "Building engine" in phases
    assert all(0 <= step <= total for _, step, total in seen)


@needs_rtx
def test_fp16_for_two_targets_and_for_all(tmp_path: Path) -> None:
    half = conv_net(tmp_path / "half.onnx", (3, 64, 64), dtype=np.float16)
    two = TensorRTRTXBackend().build(
        BuildRequest(half, tmp_path / "two", image_profile(), "fp16", targets=("SM86", "sm89"))
    )
    assert two.targets == ("sm86", "sm89")
    default = TensorRTRTXBackend().build(BuildRequest(half, tmp_path / "all", image_profile(), "fp16"))
    assert "sm75" not in default.targets
    assert {"sm80", "sm86", "sm89", "sm120"} <= set(default.targets)
    assert abs(default.engine_bytes - two.engine_bytes) < 16 << 10


@needs_rtx
def test_external_data_is_found_beside_the_graph(net: Path, tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx", external=True)
    inside = TensorRTRTXBackend().build(BuildRequest(net, tmp_path / "a", image_profile(), targets=("sm86",)))
    beside = TensorRTRTXBackend().build(BuildRequest(path, tmp_path / "b", image_profile(), targets=("sm86",)))
    assert beside.engine_bytes == inside.engine_bytes


@needs_rtx
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"targets": ("sm90",)}, InputError, ["no target sm90", "sm75", "sm121"]),
        ({"targets": ("current", "sm86")}, InputError, ["current"]),
        ({"profile": image_profile(32)}, InputError, ["1x3x32x32", "image float32"]),
        ({"profile": {}}, InputError, ["no shapes for the dynamic input image"]),
        ({"precision": "fp16"}, JobError, ["fp16 was asked for", "fp32"]),
    ],
)
def test_requests_that_cannot_be(
    net: Path, tmp_path: Path, change: dict[str, object], error: type[Exception], words: list[str]
) -> None:
    (tmp_path / "model.engine").write_bytes(b"the one before")
    request = BuildRequest(**{"onnx": net, "output": tmp_path, "profile": image_profile(), **change})  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        TensorRTRTXBackend().build(request)
    assert all(word in str(caught.value) for word in words)
    assert (tmp_path / "model.engine").read_bytes() == b"the one before"
    assert len(list(tmp_path.iterdir())) == 1


@needs_rtx
def test_parser_error_names_the_operator_and_the_node(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "odd.onnx", unknown_op="NoSuchOp")
    with pytest.raises(JobError) as caught:
        TensorRTRTXBackend().build(BuildRequest(path, tmp_path / "out", image_profile(), targets=("sm86",)))
    assert caught.value.layer == "odd_one"
    assert "NoSuchOp" in str(caught.value)
    assert "odd.onnx" in str(caught.value)


@needs_rtx
def test_file_that_is_no_graph(tmp_path: Path) -> None:
    # These bytes are a protobuf message of unknown fields: the parser takes them for an empty graph.
    (tmp_path / "junk.onnx").write_bytes(b"hello" * 100)
    with pytest.raises(InputError, match="not an ONNX model"):
        TensorRTRTXBackend().build(BuildRequest(tmp_path / "junk.onnx", tmp_path / "out", image_profile()))
    with pytest.raises(InputError, match="no such file"):
        TensorRTRTXBackend().build(BuildRequest(tmp_path / "absent.onnx", tmp_path / "out", image_profile()))


#: TensorRT-RTX with a builder that works, and then dawdles long enough to be caught at it.
_DAWDLER = """
import time
import tensorrt_rtx
from tensorrt_rtx import *

class Builder(tensorrt_rtx.Builder):
    def build_serialized_network(self, network, config):
        plan = super().build_serialized_network(network, config)
        time.sleep(60)
        return plan
"""


@pytest.fixture
def dawdler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module whose builds last a minute; the worker finds it where the caller does."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "dawdling_rtx.py").write_text(_DAWDLER)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return "dawdling_rtx"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The workers that the test starts."""
    workers: list[subprocess.Popen[bytes]] = []

    class Remembered(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            workers.append(self)

    monkeypatch.setattr(subprocess, "Popen", Remembered)
    return workers


@needs_rtx
def test_killed_worker_is_a_clean_error(
    net: Path, tmp_path: Path, dawdler: str, started: list[subprocess.Popen[bytes]]
) -> None:
    def kill(phase: str, step: int, total: int) -> None:
        if phase == "Building engine":
            started[0].send_signal(signal.SIGKILL)

    request = BuildRequest(net, tmp_path / "out", image_profile(), targets=("sm86",))
    with pytest.raises(JobError, match="killed by SIGKILL") as caught:
        trt_process.build_in_worker(dawdler, request, "model.engine", kill)
    assert "net.onnx" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@needs_rtx
def test_interrupted_caller_takes_the_worker_along(
    net: Path, tmp_path: Path, dawdler: str, started: list[subprocess.Popen[bytes]]
) -> None:
    def interrupt(phase: str, step: int, total: int) -> None:
        raise KeyboardInterrupt

    request = BuildRequest(net, tmp_path / "out", image_profile())
    with pytest.raises(KeyboardInterrupt):
        trt_process.build_in_worker(dawdler, request, "model.engine", interrupt)
    assert started[0].returncode == -signal.SIGKILL
    assert list((tmp_path / "out").iterdir()) == []


_CALLER = """
import subprocess, sys
from pathlib import Path
from trtkp.engine import BuildRequest
from trtkp.engine.trt import process as trt_process
from trtkp.shapes import ShapeRange

class Shown(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        print(self.pid, flush=True)

trt_process.subprocess.Popen = Shown
shapes = ShapeRange((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))
request = BuildRequest(Path(sys.argv[1]), Path(sys.argv[2]), {"image": shapes})
trt_process.build_in_worker(sys.argv[3], request, "model.engine", lambda *step: print(*step, flush=True))
"""


@needs_rtx
def test_worker_does_not_outlive_a_killed_caller(net: Path, tmp_path: Path, dawdler: str) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER, str(net), str(tmp_path), dawdler], stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    worker = int(caller.stdout.readline())
    assert any(line.startswith("Building engine") for line in caller.stdout)
    assert _alive(worker)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    deadline = time.monotonic() + 40  # the build that it must not finish takes 60 s
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    alive = _alive(worker)
    if alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    assert not alive


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):  # a zombie whose new parent has not looked yet is dead enough
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


@needs_rtx
def test_worker_ends_with_its_stdin(net: Path, tmp_path: Path, dawdler: str) -> None:
    request = encode_request(BuildRequest(net, tmp_path, image_profile()))
    job = {"module": dawdler, "request": request, "engine": str(tmp_path / "model.engine")}
    worker = subprocess.run(
        [sys.executable, "-m", "trtkp.engine.trt.worker"],
        input=json.dumps(job).encode() + b"\n",
        capture_output=True,
        timeout=50,  # the build alone takes 60 s
        check=False,
    )
    assert worker.returncode == 1
    assert b'"done"' not in worker.stdout
    assert not (tmp_path / "model.engine").exists()


@needs_rtx
def test_profile_reaches_the_builder(net: Path) -> None:
    import tensorrt_rtx as trt

    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network, parser = trt_builder._parse(trt, builder, logger, net)
    kept = []

    class Recorder:
        def create_optimization_profile(self) -> object:
            kept.append(builder.create_optimization_profile())
            return kept[-1]

    request = BuildRequest(net, net.parent, image_profile(batches=(2, 3, 5)))
    config = builder.create_builder_config()
    trt_config.add_profiles(Recorder(), config, network, request)
    assert [shape[0] for shape in kept[0].get_shape("image")] == [2, 3, 5]
    assert config.num_optimization_profiles == 1
    config = builder.create_builder_config()
    split = replace(request, trt=TrtOptions(tune_batches=(3, 4)))
    trt_config.add_profiles(Recorder(), config, network, split)
    assert config.num_optimization_profiles == 3
    assert [[shape[0] for shape in made.get_shape("image")] for made in kept[1:]] == [[2, 3, 3], [4, 4, 4], [5, 5, 5]]
    del parser


def test_worker_that_cannot_start_says_why(net: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="ModuleNotFoundError: No module named 'tensorrt_missing'"):
        trt_process.build_in_worker("tensorrt_missing", BuildRequest(net, tmp_path, image_profile()), "model.engine")
    assert list(tmp_path.iterdir()) == []


def test_worker_that_dies_with_words(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, sys; print('out of patience', file=sys.stderr, flush=True); os.abort()"
    monkeypatch.setattr(trt_process, "child_command", lambda module: [sys.executable, "-c", program])
    with pytest.raises(JobError, match=r"killed by SIGABRT; its last lines: .*out of patience"):
        trt_process.build_in_worker("tensorrt_rtx", BuildRequest(net, tmp_path, image_profile()), "model.engine")


def test_request_survives_the_wire() -> None:
    request = BuildRequest(
        Path("a.onnx"),
        Path("out"),
        {"x": ShapeRange((1, 2), (2, 2), (4, 2))},
        "fp16",
        targets=("sm86",),
        optimization_level=3,
        threads=2,
        plugins=Path("libtrtkp.so"),
        plugin_nodes=3,
        sparse=True,
        trt=TrtOptions(Path("cache"), 64, (1, 8), True, True, "ampere+", True, True, True),
    )
    assert decode_request(encode_request(request)) == request


@pytest.mark.skipif(bool(find_gpus().gpus), reason="this machine has a GPU")
@needs_rtx
def test_engines_do_not_open_without_a_gpu(tmp_path: Path, net: Path) -> None:
    backend = TensorRTRTXBackend()
    with pytest.raises(InputError, match="no such file"):
        backend.open(tmp_path / "model.engine")
    (tmp_path / "model.engine").write_bytes(b"x")
    with pytest.raises(NotRunnableError, match="no NVIDIA GPU"):
        backend.open(tmp_path / "model.engine")
    with pytest.raises(InputError, match="target current: no NVIDIA GPU"):
        backend.build(BuildRequest(net, tmp_path, image_profile(), targets=("current",)))


@needs_rtx
def test_tf32_is_off() -> None:
    """The library's own default is on; the worker's configuration must say otherwise."""
    import tensorrt_rtx as trt

    made = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    assert made.get_flag(trt.BuilderFlag.TF32), "the library's default changed: say so where it is documented"
    trt_config.clear_tf32(trt, made)
    assert not made.get_flag(trt.BuilderFlag.TF32)


def test_our_plugins_are_refused_in_the_worker() -> None:
    def module(**more: object) -> SimpleNamespace:
        creator = SimpleNamespace(name="StripeConv", plugin_namespace="trtkp")
        return SimpleNamespace(get_plugin_registry=lambda: SimpleNamespace(all_creators=[creator]), **more)

    with pytest.raises(JobError, match="StripeConv is registered"):
        trt_plugins.refuse_plugins(module(ComputeCapability=object))
    trt_plugins.refuse_plugins(module())  # TensorRT proper takes them
