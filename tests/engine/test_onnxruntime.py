"""The ONNX Runtime backend: right numbers, and errors before the session sees a wrong feed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from trtkp.engine import BuildRequest, NotRunnableError
from trtkp.engine.onnxruntime import OnnxRuntimeBackend, OrtRunner
from trtkp.errors import InputError, JobError

from .graphs import conv_net, image_profile


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("net") / "net.onnx")


def _image(batch: int = 2, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 3, 16, 16)).astype(dtype)


def test_same_numbers_from_path_bytes_proto_and_run_to_run(net: Path) -> None:
    image = _image()
    results = []
    for model in (net, net.read_bytes(), onnx.load(net)):
        with OrtRunner(model, threads=1) as runner:
            assert runner.threads == 1
            assert [str(spec) for spec in runner.inputs] == ["image float32[N, 3, 16, 16]"]
            assert [str(spec) for spec in runner.outputs] == ["y float32[N, 16, 1, 1]"]
            results += [runner.run({"image": image})["y"] for _ in range(2)]
    assert all(np.array_equal(result, results[0]) for result in results)
    assert results[0].shape == (2, 16, 1, 1)


def test_feeds_that_are_not_contiguous(net: Path) -> None:
    image = _image(4)
    with OrtRunner(net) as runner:
        np.testing.assert_array_equal(
            runner.run({"image": image[::2]})["y"], runner.run({"image": image[::2].copy()})["y"]
        )


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, ["image is missing", "float32[N, 3, 16, 16]"]),
        ({"image": _image(), "extra": _image()}, ["no input named extra", "takes image"]),
        ({"image": _image(dtype=np.float64)}, ["input image", "expected image float32", "got float64[2, 3, 16, 16]"]),
        ({"image": _image()[:, :2]}, ["float32[N, 3, 16, 16]", "got float32[2, 2, 16, 16]"]),
        ({"image": _image()[0]}, ["got float32[3, 16, 16]"]),
        ({"image": _image()[:0]}, ["got float32[0, 3, 16, 16]"]),
    ],
)
def test_wrong_feeds(
    net: Path, feeds: dict[str, np.ndarray], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with OrtRunner(net) as runner:

        class Untouched:
            def run(self, *_: object) -> None:
                raise AssertionError("the session was called")

        monkeypatch.setattr(runner, "_session", Untouched())
        with pytest.raises(InputError) as caught:
            runner.run(feeds)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_inputs_that_share_a_dimension() -> None:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "sum", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with OrtRunner(model) as runner:
        with pytest.raises(InputError, match="N = 3 in input a"):
            runner.run({"a": np.zeros((3, 2), np.float32), "b": np.zeros((1, 2), np.float32)})
        assert runner.run({name: np.ones((3, 2), np.float32) for name in "ab"})["c"].sum() == 12


def test_dimensions_without_names_are_not_one(tmp_path: Path) -> None:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with OrtRunner(model) as runner:
        assert str(runner.inputs[0]) == "a float32[a.0, a.1]"
        assert runner.run({"a": np.ones((3, 2), np.float32), "b": np.ones((2, 5), np.float32)})["c"].shape == (3, 5)


def test_build_puts_the_graph_in_place(net: Path, tmp_path: Path) -> None:
    result = OnnxRuntimeBackend().build(BuildRequest(net, tmp_path / "out", image_profile()))
    assert result.files == (tmp_path / "out" / "engine.onnx",)
    assert result.engine_bytes == result.files[0].stat().st_size
    assert result.version == onnxruntime.__version__
    with OnnxRuntimeBackend().open(result.files[0], threads=1) as runner:
        assert runner.run({"image": _image()})["y"].shape == (2, 16, 1, 1)


def test_build_in_place_with_external_data(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "engine.onnx", external=True)
    before = path.read_bytes()
    result = OnnxRuntimeBackend().build(BuildRequest(path, tmp_path, image_profile()))
    assert result.files == (path, tmp_path / "weights.bin")
    assert path.read_bytes() == before
    elsewhere = OnnxRuntimeBackend().build(BuildRequest(path, tmp_path / "copy", image_profile()))
    assert elsewhere.files == (tmp_path / "copy" / "engine.onnx",)
    with OrtRunner(path) as first, OrtRunner(elsewhere.files[0]) as second:
        np.testing.assert_array_equal(first.run({"image": _image()})["y"], second.run({"image": _image()})["y"])


def test_build_refuses_a_profile_that_does_not_fit(net: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1x3x32x32 does not fit"):
        OnnxRuntimeBackend().build(BuildRequest(net, tmp_path / "out", image_profile(32)))
    with pytest.raises(InputError, match="no shapes for the dynamic input image"):
        OnnxRuntimeBackend().build(BuildRequest(net, tmp_path / "out", {}))
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_model(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"hello" * 100)
    for path in (junk, tmp_path / "absent.onnx"):
        with pytest.raises(InputError) as caught:
            OrtRunner(path)
        assert path.name in str(caught.value)
    with pytest.raises(JobError, match="NoSuchOp"):
        OrtRunner(conv_net(tmp_path / "odd.onnx", unknown_op="NoSuchOp"))


def test_options(net: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        OrtRunner(net, threads=0)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(NotRunnableError, match="CUDAExecutionProvider"):
            OrtRunner(net, provider="cuda")
    runner = OrtRunner(net)
    runner.close()
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner.run({"image": _image()})


def test_nothing_on_standard_error_where_the_home_folder_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.touch()  # a file: no folder can be made in it, not even by root
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", "import trtkp, onnxruntime"],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
