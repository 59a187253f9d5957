"""gRPC as its own clients know it: tritonclient and grpcio, with compression, deadlines, streams and keepalive."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.serving.servers import Server, batch_input, images, running

Answers = Callable[[np.ndarray], np.ndarray]
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
READY = "/inference.GRPCInferenceService/ServerReady"


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def message(rows: int = 1, **options: Any) -> bytes:
    request = pb.ModelInferRequest(model_name="kep", **options)
    request.inputs.add(name="image", datatype="FP32", shape=[rows, 3, 8, 8])
    request.raw_input_contents.append(images(rows).tobytes())
    return request.SerializeToString()


def output(answer: bytes) -> np.ndarray:
    response = pb.ModelInferResponse.FromString(answer)
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_messages(server: Server, answers: Answers, algorithm: str) -> None:
    with server.grpc_client() as client:
        result = client.infer("kep", batch_input(triton_grpc, images(40)), compression_algorithm=algorithm)
    np.testing.assert_allclose(result.as_numpy("y"), answers(images(40)), rtol=1e-4, atol=1e-5)
    with grpc.insecure_channel(server.grpc) as channel:  # a method that is answered at once
        compression = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}[algorithm]
        body = pb.ModelReadyRequest(name="kep", version="1").SerializeToString()
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        assert pb.ModelReadyResponse.FromString(call(body, compression=compression, timeout=10)).ready


def test_a_stream_of_compressed_messages_with_keepalive(server: Server, answers: Answers) -> None:
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    keepalive = triton_grpc.KeepAliveOptions(
        keepalive_time_ms=100,
        keepalive_timeout_ms=5000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )
    with server.grpc_client(keepalive_options=keepalive) as client:
        client.start_stream(callback=lambda result, error: got.put((result, error)), compression_algorithm="gzip")
        for rows in (1, 64, 7):
            client.async_stream_infer("kep", batch_input(triton_grpc, images(rows)))
        for rows in (1, 64, 7):
            result, error = got.get(timeout=10)
            assert error is None
            np.testing.assert_allclose(result.as_numpy("y"), answers(images(rows)), rtol=1e-4, atol=1e-5)
        time.sleep(0.5)  # pings
        client.async_stream_infer("kep", batch_input(triton_grpc, images(1)))
        assert got.get(timeout=10)[1] is None
        client.stop_stream()


def test_contents_instead_of_raw_bytes(channel: grpc.Channel, answers: Answers) -> None:
    request = pb.ModelInferRequest(model_name="kep")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=[2, 3, 8, 8])
    tensor.contents.fp32_contents.extend(images(2).ravel().tolist())
    call = channel.unary_unary(INFER)
    np.testing.assert_allclose(output(call(request.SerializeToString())), answers(images(2)), rtol=1e-4, atol=1e-5)
    tensor.contents.fp32_contents.append(1)
    with pytest.raises(grpc.RpcError, match="needs 1536 bytes, got 1540"):
        call(request.SerializeToString())


def test_many_calls_at_once_on_one_connection(server: Server, answers: Answers) -> None:
    expected = answers(images(1))

    async def all_of_them() -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            call = channel.unary_unary(INFER)
            for answer in await asyncio.gather(*(call(message(), timeout=30) for _ in range(200))):
                np.testing.assert_allclose(output(answer), expected, rtol=1e-4, atol=1e-5)

    asyncio.run(all_of_them())


def test_cancelled_calls_and_deadlines(bundles: Path, tmp_path: Path) -> None:
    """Cancelling and a deadline of the client end the work, and the log says so."""
    with (
        running(tmp_path, bundles / "kep", "--threads", "1", "--max-delay", "3000") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        call = channel.unary_unary(INFER)
        future = call.future(message())
        time.sleep(0.3)
        future.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            call(message(), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        end = time.monotonic() + 5
        while time.monotonic() < end and len(lines := [line for line in server.log if line["event"] == "request"]) < 2:
            time.sleep(0.02)
        assert [line["status"] for line in lines] == [499, 499] or [line["status"] for line in lines] == [499, 504]


def test_health_by_grpc_itself(channel: grpc.Channel) -> None:
    def check(name: str) -> bytes:
        request = pb.ModelReadyRequest(name=name).SerializeToString()  # HealthCheckRequest: field 1 is the service
        return channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=10)

    serving = b"\x08\x01"
    assert check("") == check("kep") == check("inference.GRPCInferenceService") == serving
    with pytest.raises(grpc.RpcError) as caught:
        check("no")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_metadata_of_errors(channel: grpc.Channel) -> None:
    """Words beyond ASCII survive, and so does a percent sign."""
    request = pb.ModelMetadataRequest(name="naïve 50 %").SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")(request, timeout=10)
    assert caught.value.details() == "no model 'naïve 50 %'"


def test_messages_of_megabytes(tmp_path: Path) -> None:
    """Through windows and many frames, in both directions: inputs and outputs of 8 MiB, byte by byte the same."""
    import onnx
    from onnx import TensorProto, helper

    import trtkp
    from trtkp.pipeline.options import BuildOptions

    shape: list[str | int | None] = ["N", 2, 256, 256]
    weight = np.stack([np.eye(2, dtype=np.float32)]).reshape(2, 2, 1, 1)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="same")],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "n.onnx")
    options = BuildOptions(threads=1, min=("1x2x256x256",), opt=("1x2x256x256",), max=("16x2x256x256",))
    trtkp.build(tmp_path / "n.onnx", tmp_path / "same", method="none", options=options)
    value = np.random.default_rng(0).standard_normal((16, 2, 256, 256), np.float32)
    with running(tmp_path, tmp_path / "same", "--threads", "1") as server, server.grpc_client() as client:
        tensor = triton_grpc.InferInput("x", list(value.shape), "FP32")
        tensor.set_data_from_numpy(value)
        for compression in (None, "gzip"):
            got = client.infer("same", [tensor], compression_algorithm=compression).as_numpy("y")
            assert np.array_equal(got, value)
        large = triton_grpc.InferInput("x", [17, 2, 256, 256], "FP32")
        large.set_data_from_numpy(np.concatenate([value, value[:1]]))
        with pytest.raises(InferenceServerException, match=r"a message of 8912\d+ bytes is larger than 8454144 bytes"):
            client.infer("same", [large])


@pytest.mark.serial
def test_an_idle_stream_holds_nothing_up_and_is_ended(bundles: Path, tmp_path: Path) -> None:
    """Many streams that never send: other calls are answered, and a message that stops half-way is given up."""
    with running(tmp_path, bundles / "kep", "--threads", "1", "--timeout", "1", "--connections", "4") as server:
        channels = [grpc.insecure_channel(server.grpc) for _ in range(3)]
        gate: queue.Queue[bytes] = queue.Queue()
        streams = [channel.stream_stream(STREAM)(iter(gate.get, b"")) for channel in channels for _ in range(90)]
        with server.grpc_client() as client:
            for _ in range(5):
                assert client.is_server_ready()
                assert client.infer("kep", batch_input(triton_grpc, images(1))).as_numpy("y").shape == (1, 5)
        assert server.request("GET", "/v2/health/live").status_code == 200
        for stream in streams:
            stream.cancel()
        for _ in streams:
            gate.put(b"")
        for channel in channels:
            channel.close()


def test_shutdown_answers_calls_that_were_accepted(bundles: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundles / "kep", "--threads", "1", "--max-delay", "1500") as server:
        with grpc.insecure_channel(server.grpc) as channel:
            accepted = channel.unary_unary(INFER).future(message())
            time.sleep(0.5)
            server.process.terminate()
            time.sleep(0.3)
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(INFER)(message(), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert output(accepted.result(timeout=10)).shape == (1, 5)
        assert server.process.wait(timeout=20) == 0
        assert not [line for line in server.log if line["level"] == "error"]
