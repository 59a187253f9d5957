"""TensorRT-RTX inside ONNX Runtime.

Without a GPU the real provider library loads as far as its need of a driver. The rest is tested with a stand-in: the
package's module, recorded registration, and the CPU's own device, given to a session in the same way. It shows the
calls and their order, and not what TensorRT-RTX does with them.
"""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import trtkp
from trtkp.engine import BuildRequest, NotRunnableError, choose_backend, get_backend, onnxruntime_rtx, rtx_provider
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.engine.options import RunOptions
from trtkp.errors import InputError, JobError
from trtkp.machine.gpu import Gpu, GpuReport
from trtkp.machine.packages import importable
from trtkp.shapes import ShapeRange

from .graphs import conv_net, image_profile

_FALLBACK = "session.disable_cpu_ep_fallback"


class StandIn:
    """Records the calls; the CPU's device takes the place of an RTX GPU's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refusal: str | None = None
        self.devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name == "CPUExecutionProvider"]
        self.takes_all = True
        package = types.ModuleType(rtx_provider.MODULE)
        package.get_ep_name = lambda: "CPUExecutionProvider"  # type: ignore[attr-defined]
        package.get_library_path = lambda: "/lib/provider.so"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, rtx_provider.MODULE, package)
        monkeypatch.setattr(rtx_provider, "_registered", set())
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", self.register)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", self.listed)
        monkeypatch.setattr(onnxruntime, "SessionOptions", self.options())
        self._loaded = False

    def register(self, name: str, library: str) -> None:
        self.calls.append(("register", name, library))
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        assert not self._loaded, "ONNX Runtime refuses to register a library twice"
        self._loaded = True

    def listed(self) -> list[Any]:
        return self.devices if self._loaded else []

    def options(self) -> type:
        stand_in = self

        class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
            def add_session_config_entry(self, key: str, value: str) -> None:
                stand_in.calls.append(("config", key, value))
                # the real CPU provider refuses to be added where it may not be fallen back to
                if key != _FALLBACK or not stand_in.takes_all:
                    super().add_session_config_entry(key, value)

            def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
                stand_in.calls.append(("devices", len(devices), options, self.graph_optimization_level))
                if stand_in.takes_all:
                    super().add_provider_for_devices(devices, options)

        return Options


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("net") / "net.onnx")


def test_calls_and_their_order(net: Path, stand_in: StandIn) -> None:
    image = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    with OrtRunner(net) as runner:
        want = runner.run({"image": image})["y"]
    stand_in.calls.clear()
    backend = get_backend("onnxruntime-rtx")
    for _ in range(2):  # the library is registered once
        with backend.open(net, threads=3) as runner:
            assert runner.threads is None
            np.testing.assert_allclose(runner.run({"image": image})["y"], want, rtol=1e-5, atol=1e-6)
            with pytest.raises(InputError, match="expected image float32"):
                runner.run({"image": image.astype(np.float64)})
    given = [call for call in stand_in.calls if call[0] != "config" or call[1] == _FALLBACK]
    opened: list[tuple[Any, ...]] = [
        ("config", _FALLBACK, "1"),
        ("devices", 1, {}, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ]
    assert given == [("register", "CPUExecutionProvider", "/lib/provider.so"), *opened, *opened]


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Failed to load library x.so with error: libcuda.so.1: cannot open\n",
            "needs NVIDIA's driver, which is not on this machine; install a driver",
        ),
        ("libtensorrt_rtx.so.1:\ncut off", "cannot load TensorRT-RTX: libtensorrt_rtx.so.1: cut off; reinstall"),
    ],
)
def test_library_that_does_not_load(net: Path, stand_in: StandIn, refusal: str, words: str) -> None:
    stand_in.refusal = refusal
    with pytest.raises(NotRunnableError) as caught:
        OrtRunner(net, provider="rtx")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_device_twice_and_an_old_onnxruntime(net: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.devices = []
    for _ in range(2):
        with pytest.raises(NotRunnableError, match="lists no GPU in ONNX Runtime; use an RTX GPU"):
            OrtRunner(net, provider="rtx")
    assert sum(call[0] == "register" for call in stand_in.calls) == 1
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(NotRunnableError, match=r"takes no provider libraries; pip install 'onnxruntime>=1\.24'"):
        OrtRunner(net, provider="rtx")


def test_a_node_left_to_the_cpu_is_an_error(net: Path, stand_in: StandIn) -> None:
    stand_in.takes_all = False  # the words are ONNX Runtime's own
    with pytest.raises(JobError, match=r"net\.onnx.*does not take every node of the graph; use -b onnxruntime"):
        OrtRunner(net, provider="rtx")


def test_without_the_package(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, rtx_provider.MODULE, None)
    with pytest.raises(NotRunnableError, match=r"pip install 'trtkp\[ort-rtx\]'"):
        OrtRunner(net, provider="rtx")


@pytest.mark.parametrize(
    ("capability", "runs"), [((7, 5), False), ((8, 6), True), ((8, 9), True), ((9, 0), False), ((12, 1), True)]
)
def test_availability(capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(0, "NVIDIA", capability, 8 << 30)
    monkeypatch.setattr(onnxruntime_rtx, "find_gpus", lambda: GpuReport((gpu,), "580.65", "13.0", "NVIDIA"))
    backend = get_backend("onnxruntime-rtx")
    monkeypatch.setattr(onnxruntime_rtx, "importable", lambda module: True)
    found = backend.availability()
    assert (found.can_build, found.can_run) == (True, runs)
    assert runs or f"{gpu.sm}) is not among its GPUs" in found.detail
    monkeypatch.setattr(onnxruntime_rtx, "importable", lambda module: False)
    assert not backend.availability().can_run
    assert "trtkp[ort-rtx]" in backend.availability().detail
    assert choose_backend("auto").name != "onnxruntime-rtx"


def test_builds_anywhere_and_refuses_a_wrong_profile(net: Path, tmp_path: Path) -> None:
    backend = get_backend("onnxruntime-rtx")
    result = backend.build(BuildRequest(onnx=net, output=tmp_path, profile=image_profile()))
    assert [file.name for file in result.files] == ["engine.onnx"]
    with pytest.raises(InputError, match="image"):
        backend.build(BuildRequest(onnx=net, output=tmp_path, profile={"image": ShapeRange(*[(1, 4, 16, 16)] * 3)}))
    backend.check_quantisable("fp8")
    with pytest.raises(NotRunnableError, match="cannot profile single layers"):
        backend.profile(net, {})


@pytest.mark.slow
def test_a_bundle_is_built_verified_and_run(tmp_path: Path, stand_in: StandIn) -> None:
    torch = pytest.importorskip("torch", reason="a bundle is built from a PyTorch model")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(2, 3, 8, 8),)), tmp_path / "net.pt2")
    options = trtkp.BuildOptions(backend="onnxruntime-rtx", measure=False)
    bundle = trtkp.build(tmp_path / "net.pt2", tmp_path / "bundle", method="kep", share="per-layer", options=options)
    assert bundle.manifest.backend == "onnxruntime-rtx"
    report = trtkp.verify(bundle)
    assert {check.artefact: check.status for check in report.checks}["engine"] == "verified"
    stand_in.devices = []
    stand_in._loaded = False
    rtx_provider._registered.clear()
    report = trtkp.verify(bundle)
    assert report.ok
    assert "lists no GPU" in next(check.reason or "" for check in report.checks if check.artefact == "engine")


def test_the_real_library_without_a_driver(net: Path) -> None:
    if not importable(rtx_provider.MODULE):
        pytest.skip(f"{rtx_provider.NOT_INSTALLED}: pip install 'trtkp[ort-rtx]'")
    code = (  # in a process of its own, because importing the package loads TensorRT-RTX for good
        "import sys; from pathlib import Path; from trtkp.engine.onnxruntime import OrtRunner\n"
        "from trtkp.errors import NotRunnableError\n"
        "try:\n    OrtRunner(Path(sys.argv[1]), provider='rtx').close(); print('opened')\n"
        "except NotRunnableError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(net)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    if get_backend("onnxruntime-rtx").availability().can_run:
        assert done.stdout == "opened\n"
    else:
        assert "driver" in done.stdout
        assert done.stdout.count("\n") == 1


def test_another_gpu(tmp_path: Path) -> None:
    backend = get_backend("onnxruntime-rtx")
    with pytest.raises(
        NotRunnableError, match="takes the first GPU only; leave that GPU alone visible: CUDA_VISIBLE_DEVICES=1"
    ):
        backend.open(tmp_path / "engine.onnx", options=RunOptions(device=1))
