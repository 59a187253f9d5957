"""The runner over a recording stand-in of TensorRT and of the GPU: right results, and the calls that make them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.cuda.recording_device import DeviceArray, RecordingDevice
from tests.engine.trt import recording_tensorrt
from tests.engine.trt.conftest import OpenRunner
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.engine.options import RunOptions
from trtkp.engine.trt.runner import TrtEngineRunner
from trtkp.errors import InputError, JobError


def images(batch: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(engine_file: Path) -> Any:
    with OrtRunner(engine_file.with_name("net.onnx"), threads=1) as runner:
        yield lambda x: runner.run({"image": x})["y"]


def test_dynamic_batches(open_runner: OpenRunner, reference: Any, device: RecordingDevice) -> None:
    runner = open_runner()
    assert [spec.name for spec in (*runner.inputs, *runner.outputs)] == ["image", "y"]
    kept = []
    for seed, batch in enumerate((1, 4, 2, 2, 3)):
        found = runner.run({"image": images(batch, seed)})["y"]
        np.testing.assert_allclose(found, reference(images(batch, seed)), rtol=1e-5)
        kept.append((found, found.copy()))
    for found, copy in kept:  # outputs are the caller's: later runs leave them alone
        np.testing.assert_array_equal(found, copy)
    # both tensors grew once, from batch 1 to 4, and never again
    assert device.calls.count("allocate") == 4
    assert device.live == 4 * 4 * (3 * 16 * 16 + 16)
    runner.close()
    assert device.live == 0


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"image": images(5)}, r"got float32\[5, 3, 16, 16\]"),
        ({"image": images(1).astype(np.float64)}, "got float64"),
        ({"picture": images(1)}, "no input named picture"),
        ({}, "input image is missing"),
    ],
)
def test_wrong_feeds_are_refused_before_anything_runs(
    open_runner: OpenRunner, device: RecordingDevice, feeds: dict[str, Any], words: str
) -> None:
    runner = open_runner()
    with pytest.raises(InputError, match=words):
        runner.run(feeds)
    assert "copy_in" not in device.calls
    runner.run({"image": images(1)})


def test_graph_is_captured_at_the_second_run_and_replayed(
    open_runner: OpenRunner, reference: Any, device: RecordingDevice
) -> None:
    runner = open_runner(graphs=True)
    for seed in range(4):
        found = runner.run({"image": images(2, seed)})["y"]
        np.testing.assert_allclose(found, reference(images(2, seed)), rtol=1e-5)
    assert device.calls.count("begin_capture") == 1
    assert device.calls.count("launch") == 3
    # other shapes drop it, and are run once before they are captured
    for seed in range(3):
        found = runner.run({"image": images(3, seed)})["y"]
        np.testing.assert_allclose(found, reference(images(3, seed)), rtol=1e-5)
    assert device.calls.count("begin_capture") == 2
    assert device.calls.count("launch") == 5


def test_graphs_where_none_can_be_captured_fail_loudly(engine_file: Path) -> None:
    device = RecordingDevice(why_no_graphs="this package captures none")
    with TrtEngineRunner(engine_file, recording_tensorrt, options=RunOptions(graphs=True), device=device) as runner:
        runner.run({"image": images(1)})
        with pytest.raises(JobError, match="CUDA graphs were asked for: this package captures none"):
            runner.run({"image": images(1)})


def test_kernels_that_cannot_be_captured_fail_loudly_and_leave_the_stream_usable(
    open_runner: OpenRunner, device: RecordingDevice, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_runner(graphs=True)
    runner.run({"image": images(1)})
    with monkeypatch.context() as patch:
        patch.setattr(recording_tensorrt.IExecutionContext, "execute_async_v3", lambda self, stream: self._error("no"))
        with pytest.raises(JobError, match="the engine failed: IExecutionContext::no"):
            runner.run({"image": images(1)})
    assert device.calls.count("abandon_capture") == 1
    np.testing.assert_allclose(runner.run({"image": images(1)})["y"], reference(images(1)), rtol=1e-5)


def test_device_arrays_are_read_where_they_are(
    open_runner: OpenRunner, reference: Any, device: RecordingDevice
) -> None:
    runner = open_runner()
    x = images(2)
    found = runner.run({"image": DeviceArray(x, stream=7)})["y"]
    np.testing.assert_allclose(found, reference(x), rtol=1e-5)
    assert "copy_in" not in device.calls
    assert device.waits == [7]
    runner.run({"image": DeviceArray(x, stream=None)})
    assert device.waits == [7]  # the producer says that nothing is to be waited for
    old = DeviceArray(x)
    old.__cuda_array_interface__["version"] = 2
    runner.run({"image": old})
    assert device.waits == [7, 1]  # one that names no stream used the legacy default stream
    np.testing.assert_allclose(runner.run({"image": x + 1})["y"], reference(x + 1), rtol=1e-5)


def test_device_memory_of_another_gpu_is_refused(open_runner: OpenRunner) -> None:
    runner = open_runner()
    near, far = DeviceArray(images(2)), DeviceArray(images(2))
    near.device, far.device = SimpleNamespace(index=0), SimpleNamespace(index=1)  # type: ignore[attr-defined]
    runner.run({"image": near})
    with pytest.raises(InputError, match=r'input image is on GPU 1, the engine on GPU 0; pass x.to\("cuda:0"\)'):
        runner.run({"image": far})


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (images(2)[:, :, ::2, ::2], "is not contiguous; pass x.contiguous"),
        (images(2).astype(np.float64), "elements of type <f8"),
        (images(5), r"got float32\[5, 3, 16, 16\]"),
        (images(2).astype(np.float16), "got float16"),
    ],
)
def test_device_arrays_that_do_not_fit(
    open_runner: OpenRunner, device: RecordingDevice, array: np.ndarray[Any, Any], words: str
) -> None:
    runner = open_runner()
    with pytest.raises(InputError, match=words):
        runner.run({"image": DeviceArray(array)})
    assert "copy_out" not in device.calls


def test_device_arrays_that_lie_askew_are_refused(open_runner: OpenRunner, device: RecordingDevice) -> None:
    with pytest.raises(InputError, match=r"begins 4 bytes after a multiple of 256, .*; pass x.clone\(\)"):
        open_runner().run({"image": DeviceArray(images(2), offset=4)})
    assert "copy_out" not in device.calls


def test_tensors_of_pytorch_are_valid_in_its_current_stream(
    open_runner: OpenRunner, reference: Any, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its interface names no stream; 0 is its name of the legacy default stream."""
    runner, x = open_runner(), images(2)
    tensor = type("Tensor", (DeviceArray,), {"__module__": "torch", "device": "cuda:0"})(x)
    for handle in (0x77, 0):
        monkeypatch.setattr("torch.cuda.current_stream", lambda at, handle=handle: SimpleNamespace(cuda_stream=handle))
        np.testing.assert_allclose(runner.run({"image": tensor})["y"], reference(x), rtol=1e-5)
    assert device.waits == [0x77, 1]


def test_memory_that_does_not_suffice_is_not_used_again(
    open_runner: OpenRunner, reference: Any, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, x = open_runner(), images(1)
    runner.run({"image": x})
    with monkeypatch.context() as scarce:

        def refuse(nbytes: int) -> None:
            raise JobError(f"cuMemAlloc of {nbytes} bytes: CUDA_ERROR_OUT_OF_MEMORY")

        scarce.setattr(device, "allocate", refuse)
        with pytest.raises(JobError, match="OUT_OF_MEMORY"):
            runner.run({"image": images(4)})
    before = device.calls.count("allocate")
    np.testing.assert_allclose(runner.run({"image": x})["y"], reference(x), rtol=1e-5)
    assert device.calls.count("allocate") == before + 1  # what was given back for the larger one


def test_graphs_follow_the_address_of_a_device_array(open_runner: OpenRunner, reference: Any) -> None:
    runner = open_runner(graphs=True)
    arrays = [(x, DeviceArray(x)) for x in (images(2, 1), images(2, 2))]
    for number in (0, 0, 0, 1, 1, 1, 0):
        x, there = arrays[number]
        np.testing.assert_allclose(runner.run({"image": there})["y"], reference(x), rtol=1e-5)


@pytest.mark.parametrize("contexts", [1, 3])
def test_threads(open_runner: OpenRunner, reference: Any, contexts: int) -> None:
    runner = open_runner(contexts=contexts, graphs=True)
    work = [(seed, 1 + seed % 4) for seed in range(48)]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda each: runner.run({"image": images(each[1], each[0])})["y"], work)
        for (seed, batch), y in zip(work, found, strict=True):
            np.testing.assert_allclose(y, reference(images(batch, seed)), rtol=1e-5)


def test_contexts_keep_their_shapes(open_runner: OpenRunner, device: RecordingDevice) -> None:
    """Of two free contexts the one whose last run had the same shapes is taken, so that its graph serves again."""
    runner = open_runner(contexts=2, graphs=True)
    for _ in range(4):
        runner.run({"image": images(1)})
        runner.run({"image": images(4)})
    assert device.calls.count("begin_capture") == 2
    assert device.calls.count("launch") == 6


def test_errors_carry_the_log_lines_of_tensorrt(
    open_runner: OpenRunner, tmp_path: Path, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.engine").write_bytes(b"not an engine")
    with pytest.raises(JobError, match=r"model.engine: the engine cannot be opened: .*kEXPECTED_MAGIC_TAG"):
        TrtEngineRunner(tmp_path / "model.engine", recording_tensorrt, device=device)
    runner = open_runner()
    monkeypatch.setattr(
        recording_tensorrt.IExecutionContext,
        "execute_async_v3",
        lambda self, stream: self._error("enqueueV3: out of memory"),
    )
    with pytest.raises(JobError, match="the engine failed: IExecutionContext::enqueueV3: out of memory"):
        runner.run({"image": images(1)})


def test_plugin_library_that_does_not_load_matters_to_engines_that_need_it(
    engine_file: Path, tmp_path: Path, device: RecordingDevice
) -> None:
    broken = tmp_path / "libtrtkp.so"
    with TrtEngineRunner(engine_file, recording_tensorrt, plugins=broken, device=device) as runner:
        assert runner.run({"image": images(1)})["y"].shape == (1, 16, 1, 1)
    (tmp_path / "model.engine").write_bytes(
        engine_file.read_bytes().replace(b'"ELEMENTWISE", ""', b'"PLUGIN", "trtkp"')
    )
    with pytest.raises(JobError, match=r"libtrtkp.so: TensorRT cannot load the plugin library: .*cannot open shared"):
        TrtEngineRunner(tmp_path / "model.engine", recording_tensorrt, plugins=broken, device=device)


def test_runtime_that_did_not_start_is_never_used(
    engine_file: Path, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead:
        def __init__(self, logger: Any) -> None:
            logger.log(1, "createInferRuntime: CUDA initialization failure with error: 35")

        def __getattr__(self, name: str) -> None:
            raise AssertionError("TensorRT would crash")

    monkeypatch.setattr(recording_tensorrt, "Runtime", Dead)
    with pytest.raises(JobError, match=r"TensorRT cannot start: .*error: 35"):
        TrtEngineRunner(engine_file, recording_tensorrt, device=device)


def test_profile_of_layers(open_runner: OpenRunner) -> None:
    runner = open_runner()
    profile = runner.profile({"image": images(2)}, runs=5)
    assert [(node.name, node.op, node.ms) for node in profile.nodes[:2]] == [
        ("conv0", "CaskConvolution", 0.01),
        ("relu0", "PointWise", 0.02),
    ]
    assert profile.nodes[0].outputs == ("conv0",)
    assert (profile.runs, profile.run_ms) == (5, 1.0)


def test_close_waits_for_runs_and_turns_away_who_waits(
    open_runner: OpenRunner, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_runner()
    started, go_on = threading.Event(), threading.Event()
    execute = recording_tensorrt.IExecutionContext.execute_async_v3

    def slow(self: Any, stream: int) -> bool:
        started.set()
        assert go_on.wait(10)
        return execute(self, stream)

    monkeypatch.setattr(recording_tensorrt.IExecutionContext, "execute_async_v3", slow)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(runner.run, {"image": images(1)})
        assert started.wait(10)
        waiting = pool.submit(runner.run, {"image": images(1)})
        closing = pool.submit(runner.close)
        with pytest.raises(ValueError, match="closed"):
            waiting.result(timeout=10)
        assert not closing.done()
        go_on.set()
        np.testing.assert_allclose(running.result(timeout=10)["y"], reference(images(1)), rtol=1e-5)
        closing.result(timeout=10)


def test_closed_runner(open_runner: OpenRunner) -> None:
    runner = open_runner(contexts=2)
    runner.close()
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner.run({"image": images(1)})
    with pytest.raises(InputError, match="0 contexts"):
        open_runner(contexts=0)
