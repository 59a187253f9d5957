"""Engines of the stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cuda.recording_device import RecordingDevice
from tests.engine.graphs import conv_net, image_profile
from tests.engine.trt import recording_tensorrt
from trtkp.engine.base import BuildRequest
from trtkp.engine.options import RunOptions
from trtkp.engine.trt.builder import build_engine
from trtkp.engine.trt.runner import TrtEngineRunner

OpenRunner = Callable[..., TrtEngineRunner]


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    """What a test makes the stand-in do wrong, and what it registers there, ends with the test."""
    yield
    recording_tensorrt.FAULTS.clear()
    recording_tensorrt._registry.all_creators.clear()


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice()


@pytest.fixture(scope="session")
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the stand-in builder, batch 1 to 4, and the graph it was built from beside it."""
    folder = tmp_path_factory.mktemp("engine")
    request = BuildRequest(conv_net(folder / "net.onnx"), folder, image_profile())
    build_engine(recording_tensorrt, request, folder / "model.engine", lambda *_: None, lambda *_: None)
    return folder / "model.engine"


@pytest.fixture
def open_runner(engine_file: Path, device: RecordingDevice) -> Iterator[OpenRunner]:
    opened = []

    def open_(**options: object) -> TrtEngineRunner:
        runner = TrtEngineRunner(
            engine_file,
            recording_tensorrt,
            options=RunOptions(**options),
            device=device,  # type: ignore[arg-type]
        )
        opened.append(runner)
        return runner

    yield open_
    for runner in opened:
        runner.close()
