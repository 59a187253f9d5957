"""The gRPC side under attack: health is answered, memory is bounded, nobody else is turned away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
from onnx import TensorProto, helper

import trtkp
from tests.attack.harness import attacked
from tests.attack.rpc import ATTACKS, LARGE
from tests.serving.servers import Server, batch_input, images, running
from trtkp.pipeline.options import BuildOptions

pytestmark = [pytest.mark.slow, pytest.mark.serial]

#: ``--max-pending``, and what attacks may cost beyond it.
MEMORY = (1 << 30) + (200 << 20)


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `kep`, and of `large`, whose inputs have 60 MiB."""
    folder = tmp_path_factory.mktemp("attacked")
    weight = np.ones((1, LARGE[0], 1, 1), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[256, 256], name="c")],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *LARGE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "large.onnx")
    shape = ("x".join(map(str, (1, *LARGE))),)
    options = BuildOptions(threads=1, min=shape, opt=shape, max=shape)
    trtkp.build(folder / "large.onnx", folder / "large", method="none", options=options)
    with running(folder, bundles / "kep", folder / "large", "--threads", "1", "--log-level", "warning") as server:
        yield server
        assert "Traceback" not in server.log_file.read_text()
        assert not [line for line in server.log if line["level"] == "error"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(server: Server, attack: str) -> None:
    with server.grpc_client() as client:

        def behave() -> None:
            assert client.infer("kep", batch_input(triton_grpc, images(1))).as_numpy("y").shape == (1, 5)

        behave()
        record = attacked(server, "tests.attack.rpc", attack, behave)
    assert not record.lost, record
    assert record.served >= 10, record
    assert max(record.health_s.values()) < max(0.5, 5 * record.calm_s), record
    assert record.peak_bytes - record.before_bytes < MEMORY, record
