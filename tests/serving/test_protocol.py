"""The protocol as clients know it: tritonclient over HTTP and gRPC, and plain HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

import trtkp
from tests.serving.servers import Server, batch_input, images, running
from tests.serving.test_survival import until

Answers = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Server) -> Any:
    with server.http_client() if request.param == "http" else server.grpc_client() as client:
        client.module = triton_http if request.param == "http" else triton_grpc
        yield client


def as_dict(client: Any, method: str, *arguments: Any) -> Any:
    options = {"as_json": True} if client.module is triton_grpc else {}
    return getattr(client, method)(*arguments, **options)


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("kep")
    assert client.is_model_ready("net", "1")
    server = as_dict(client, "get_server_metadata")
    assert (server["name"], server["version"]) == ("trtkp", trtkp.__version__)
    assert "binary_tensor_data" in server["extensions"]
    model = as_dict(client, "get_model_metadata", "kep")
    assert (model["name"], model["versions"], model["platform"]) == ("kep", ["1"], "trtkp_onnxruntime_fp32")
    [tensor] = model["inputs"]
    assert (tensor["name"], tensor["datatype"]) == ("image", "FP32")
    assert [int(size) for size in tensor["shape"]] == [-1, 3, 8, 8]
    assert as_dict(client, "get_model_metadata", "net")["versions"] == ["1", "2"]


def test_configuration_index_and_statistics(client: Any) -> None:
    config = as_dict(client, "get_model_config", "kep")
    config = config.get("config", config)
    assert (config["name"], int(config["max_batch_size"])) == ("kep", 64)
    index = as_dict(client, "get_model_repository_index")
    entries = index["models"] if isinstance(index, dict) else index
    assert {(entry["name"], entry["version"]) for entry in entries} == {
        ("kep", "1"), ("one", "1"), ("four", "1"), ("wide", "1"), ("net", "1"), ("net", "2"),
    }  # fmt: skip
    assert {entry["state"] for entry in entries} == {"READY"}
    before = as_dict(client, "get_inference_statistics", "kep")["model_stats"][0]
    client.infer("kep", batch_input(client.module, images(3)))
    after = as_dict(client, "get_inference_statistics", "kep")["model_stats"][0]
    assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == 3


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_infer(client: Any, answers: Answers, rows: int) -> None:
    result = client.infer("kep", batch_input(client.module, images(rows)), request_id="a/7")
    np.testing.assert_allclose(result.as_numpy("y"), answers(images(rows)), rtol=1e-4, atol=1e-5)
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "a/7"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_binary_and_json(server: Server, answers: Answers, binary_in: bool, binary_out: bool) -> None:
    wanted = [triton_http.InferRequestedOutput("y", binary_data=binary_out)]
    with server.http_client() as client:
        result = client.infer("kep", batch_input(triton_http, images(2), binary_data=binary_in), outputs=wanted)
    [output] = result.get_response()["outputs"]
    assert ("data" in output) is not binary_out
    np.testing.assert_allclose(result.as_numpy("y"), answers(images(2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_requests(server: Server, answers: Answers, compression: str) -> None:
    with server.http_client() as client:
        result = client.infer("kep", batch_input(triton_http, images(2)), request_compression_algorithm=compression)
    np.testing.assert_allclose(result.as_numpy("y"), answers(images(2)), rtol=1e-4, atol=1e-5)


def test_decompression_has_a_limit(bundles: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundles / "kep", "--max-body", "0.1") as server:
        bomb = gzip.compress(b" " * (64 << 20))
        assert len(bomb) < 100_000
        answer = server.request("POST", "/v2/models/kep/infer", data=bomb, headers={"Content-Encoding": "gzip"})
        assert (answer.status_code, answer.json()["error"]) == (
            413,
            "the decompressed body is larger than 104857 bytes",
        )
        answer = server.request("POST", "/v2/models/kep/infer", data=b" " * 200_000)
        assert answer.status_code == 413
        with (
            server.grpc_client() as client,
            pytest.raises(InferenceServerException, match="a message of 153631 bytes is larger than"),
        ):
            client.infer("kep", batch_input(triton_grpc, images(200)))


def test_decompressed_bytes_count_as_pending(bundles: Path, tmp_path: Path) -> None:
    """A few kilobytes that wait as megabytes count as megabytes towards ``--max-pending``."""
    limits = ("--max-body", "2", "--max-pending", "3", "--max-delay", "1500")
    with running(tmp_path, bundles / "kep", "--threads", "1", *limits) as server:
        head = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}]}
        body = gzip.compress(json.dumps(head).replace("0.5,", "0.5," + " " * 4000).encode())  # 800 kB
        statuses: list[int] = []

        def ask() -> None:
            options = {"data": body, "headers": {"Content-Encoding": "gzip"}}
            statuses.append(server.request("POST", "/v2/models/kep/infer", **options).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 503}, statuses
        assert server.request("POST", "/v2/models/kep/infer", json=head).status_code == 200


@pytest.mark.serial
def test_slow_heads_and_too_many_connections(bundles: Path, tmp_path: Path) -> None:
    """A client with a slow request head is cut off after ``--timeout``; idle ones make room for others."""
    limits = ("--timeout", "3", "--connections", "3", "--max-delay", "1500")
    with running(tmp_path, bundles / "kep", "--threads", "1", *limits) as server, ExitStack() as stack:
        host, port = server.host.split(":")
        begin = time.monotonic()
        idle, dripping, reused = (stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(3))
        dripping.sendall(b"GET /v2 HTTP/1.1\r\nHost: a")
        reused.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"live":true}'):
            answer += reused.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert server.request("GET", "/v2").status_code == 200  # in the place of the one that was idle longest
        assert idle.recv(1000) == b""
        reused.sendall(b"GET /v2")
        for _ in range(5):
            time.sleep(0.1)
            dripping.sendall(b"a")
        for connection in (dripping, reused):
            connection.settimeout(10)
            assert connection.recv(1000) == b""
        assert 2.9 < time.monotonic() - begin < 10
        assert server.request("GET", "/v2/health/live").status_code == 200

        outcomes: queue.Queue[str] = queue.Queue()

        def done(result: Any, error: Any) -> None:
            outcomes.put("ok" if error is None else str(error.status()))

        with server.grpc_client() as client:
            for _ in range(6):  # calls of one connection
                client.async_infer("kep", batch_input(triton_grpc, images(1)), done)
            assert Counter(outcomes.get(timeout=10) for _ in range(6)) == {"ok": 6}


def test_plain_http(server: Server, answers: Answers) -> None:
    body = {"id": "1", "inputs": [
        {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": images(1).tolist()}
    ]}  # fmt: skip
    answer = server.request("POST", "/v2/models/kep/infer", json=body, headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (200, "mine")
    document = answer.json()
    assert {key: document[key] for key in ("id", "model_name", "model_version")} == {
        "id": "1", "model_name": "kep", "model_version": "1",
    }  # fmt: skip
    [output] = document["outputs"]
    assert (output["datatype"], output["shape"]) == ("FP32", [1, 5])
    np.testing.assert_allclose([output["data"]], answers(images(1)), rtol=1e-4, atol=1e-5)
    until(lambda: any(line.get("request_id") == "mine" for line in server.log))
    assert {"request_id": "mine", "model": "kep", "status": 200, "protocol": "http"}.items() <= next(
        line for line in server.log if line.get("request_id") == "mine"
    ).items()


def test_versions(client: Any, bundles: Path) -> None:
    expected = {}
    for version in ("1", "2"):
        with trtkp.load(bundles / "net" / version) as bundle:
            expected[version] = bundle.run({"image": images(2)})["y"]
    assert not np.allclose(expected["1"], expected["2"])
    for asked, given in (("1", "1"), ("2", "2"), ("", "2")):
        result = client.infer("net", batch_input(client.module, images(2)), model_version=asked)
        np.testing.assert_allclose(result.as_numpy("y"), expected[given], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "most"), [("one", 1), ("four", 4), ("wide", 8)])
def test_fewer_rows_than_the_engine_takes_are_padded(client: Any, bundles: Path, name: str, most: int) -> None:
    with trtkp.load(bundles / "net" / "1") as bundle:  # the same net, with a free batch
        for rows in (1, most):
            result = client.infer(name, batch_input(client.module, images(rows)))
            expected = bundle.run({"image": images(rows)})["y"]
            np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InferenceServerException, match=rf"expected image FP32\[1(\.\.{most})?, 3, 8, 8\]"):
        client.infer(name, batch_input(client.module, images(most + 1)))


def test_errors_name_what_is_wrong(client: Any) -> None:
    def refusal(model: str = "kep", inputs: list[Any] | None = None, **options: Any) -> str:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, batch_input(client.module, images(1)) if inputs is None else inputs, **options)
        assert caught.value.status() in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")
        return caught.value.message()

    module = client.module
    assert refusal("no") == "no model 'no'"
    assert refusal(model_version="7") == "model kep has no version '7', only 1"
    assert "got shape [65, 3, 8, 8]" in refusal(inputs=batch_input(module, images(65)))
    other = module.InferInput("picture", [1, 3, 8, 8], "FP32")
    other.set_data_from_numpy(images(1))
    assert refusal(inputs=[other]) == "no input 'picture'; the model has image"
    assert refusal(inputs=batch_input(module, images(1)) * 2) == "input image is given twice"
    double = module.InferInput("image", [1, 3, 8, 8], "FP64")
    double.set_data_from_numpy(images(1).astype(np.float64))
    assert "expected image FP32[1..64, 3, 8, 8], got datatype FP64" in refusal(inputs=[double])
    assert refusal(outputs=[module.InferRequestedOutput("z")]) == "no output 'z'; the model has y"
    assert refusal(sequence_id=3) == "parameter sequence_id is not supported"
    assert refusal(outputs=[module.InferRequestedOutput("y", class_count=2)]) == (
        "parameter classification is not supported"
    )


def test_stream(server: Server, answers: Answers) -> None:
    async def talk() -> list[Any]:
        async def requests_() -> Any:
            for model in ("kep", "no", "kep"):
                yield {"model_name": model, "inputs": batch_input(triton_grpc, images(1))}

        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
            return [answer async for answer in client.stream_infer(requests_())]

    first, second, third = asyncio.run(talk())
    assert second[1].message() == "no model 'no'"
    for result, error in (first, third):
        assert error is None
        np.testing.assert_allclose(result.as_numpy("y"), answers(images(1)), rtol=1e-4, atol=1e-5)


def test_metrics(server: Server) -> None:
    with server.http_client() as client:
        client.infer("four", batch_input(triton_http, images(3)))
    text = server.request("GET", "/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['trtkp_requests_total{model="four",protocol="http",status="200",version="1"}']) >= 1
    assert float(values['trtkp_batch_rows_sum{model="four",version="1"}']) >= 3
    assert float(values['trtkp_model_ready{model="four",version="1"}']) == 1
    assert float(values['trtkp_queue_requests{model="four",version="1"}']) == 0
    assert float(values['trtkp_worker_resident_bytes{model="four",version="1"}']) > 10e6
    for histogram in ("request", "queue", "compute"):
        assert f'trtkp_{histogram}_seconds_bucket{{le="+Inf",model="four",version="1"}}' in values
    assert "# TYPE trtkp_gpu_memory_used_bytes gauge" in text


def test_unknown_paths_and_methods(server: Server) -> None:
    for path, method, status in (
        ("/", "GET", 404), ("/v2/models/kep/infer", "GET", 405), ("/v2/models/no", "GET", 404),
        ("/v2/models/kep/versions/9/ready", "GET", 404), ("/v2/repository/models/kep/load", "POST", 404),
    ):  # fmt: skip
        answer = server.request(method, path)
        assert (answer.status_code, list(json.loads(answer.text))) == (status, ["error"])
