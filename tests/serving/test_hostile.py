"""Malformed requests: always refused as the client's fault, in words, and never the end of the server."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.serving.servers import Server, batch_input, images

EXAMPLES = 300
#: Statuses that blame the client.
CLIENT = range(400, 500)
REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
_sizes = st.lists(st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 3, 8, 64, 65, 2**31, 2**62]), max_size=6)
_good = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}


@st.composite
def wrong_documents(draw: st.DrawFn) -> Any:
    """A right request with one or two things replaced: names, types, shapes, data, whole parts."""
    tensor = dict(_good)
    document: dict[str, Any] = {"inputs": [tensor]}
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(["name", "datatype", "shape", "data", "parameters", "inputs", "outputs"]))
        if place == "shape":
            tensor["shape"] = draw(_sizes | _json)
        elif place == "datatype":
            tensor["datatype"] = draw(st.sampled_from(["FP64", "INT8", "BYTES", "fp32", ""]) | _json)
        elif place == "data":
            tensor["data"] = draw(st.lists(_json, max_size=5) | st.just([["x"] * 192]) | st.just([0.5] * 191) | _json)
        elif place == "parameters":
            tensor["parameters"] = draw(
                st.fixed_dictionaries({"binary_data_size": st.integers(-(2**70), 2**70) | _json}) | _json
            )
        elif place == "outputs":
            document["outputs"] = draw(
                st.just([{"name": "z"}]) | st.just([{"name": "y", "parameters": {"binary_data": 3}}]) | _json
            )
        else:
            document[place] = (
                draw(st.just([]) | st.just([tensor, tensor]) | _json) if place == "inputs" else draw(_json)
            )
        if place == "name":
            tensor["name"] = draw(_json)
    return document


@given(document=wrong_documents())
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
def test_wrong_json(server: Server, document: Any) -> None:
    answer = _post(server, json.dumps(document).encode())
    if answer.status_code == 200:  # a replacement that changed nothing that counts
        assert _harmless(document), document
    else:
        _check(answer)


def _harmless(document: Any) -> bool:
    tensor = document["inputs"][0]
    return (
        all(tensor[key] == _good[key] for key in _good) and tensor.get("parameters", {}).get("binary_data_size") is None
    )


@given(body=st.binary(max_size=2000), length=st.none() | st.text("0123456789-+.x", min_size=1, max_size=24))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
def test_garbage_bytes(server: Server, body: bytes, length: str | None) -> None:
    _check(_post(server, body, {} if length is None else {"Inference-Header-Content-Length": length}))


@given(data=st.data())
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
def test_wrong_binary_bodies(server: Server, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0, 1, 767, 769, 2**31, 2**63]) | st.integers(0, 2**65))
    tail = data.draw(st.binary(max_size=900))
    head = json.dumps({"inputs": [{key: _good[key] for key in ("name", "datatype", "shape")} | {
        "parameters": {"binary_data_size": size}
    }]}).encode()  # fmt: skip
    if size == len(tail) == 768:
        return
    _check(_post(server, head + tail, {"Inference-Header-Content-Length": str(len(head))}))


def test_deep_and_long_json(server: Server) -> None:
    for body in (b"[" * 100_000, b'{"inputs":' + b"[" * 50_000, b'{"inputs":[' + b"{}," * 10_000 + b"{}]}",
                 b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,3,8,8],"data":' + b"[" * 900 + b"1" +
                 b"]" * 900 + b"}]}"):  # fmt: skip
        _check(_post(server, body))


def test_one_long_text_among_the_values(server: Server) -> None:
    """NumPy would give every value the room of the longest: here 600 MB."""
    peak = _peak_bytes(server)
    for data in (
        ["a" * 50_000] + ["b"] * 3000,
        [["a" * 50_000], ["b"] * 3000],
        ["a"] * 192,
        [[0.5] * 191, [None]],
    ):
        document = {"inputs": [{**_good, "data": data}]}
        answer = _post(server, json.dumps(document).encode())
        _check(answer)
        assert "data is ragged or holds values that are not FP32" in answer.text
    assert _peak_bytes(server) - peak < 256 << 20


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),  # a TLS handshake
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2/models/kep/infer HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
        b"POST /v2/models/kep/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v2/models/kep/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"POST /v2/models/kep/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v2/models/kep/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /v2/models/%00%ff/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_broken_http(server: Server, raw: bytes) -> None:
    status = _raw(server, raw)
    assert status is None or status in CLIENT


def test_truncated_body(server: Server) -> None:
    """The client goes away in the middle; the server logs it as the client's fault and goes on."""
    head = b"POST /v2/models/kep/infer HTTP/1.1\r\nHost: x\r\nX-Request-ID: cut\r\nContent-Length: 5000\r\n\r\n"
    assert _raw(server, head + b'{"inputs": [', close=True) is None
    for _ in range(100):
        lines = [line for line in server.log if line.get("request_id") == "cut"]
        if lines:
            break
        asyncio.run(asyncio.sleep(0.02))
    assert [(line["status"], line["error"]) for line in lines] == [(400, "the body ended early")]


@given(data=st.data())
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
def test_wrong_grpc(server: Server, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        message = pb.ModelInferRequest(model_name="kep")
        count = data.draw(st.integers(0, 2))
        for _ in range(count):
            message.inputs.add(
                name=data.draw(st.sampled_from(["image", "picture", ""])),
                datatype=data.draw(st.sampled_from(["FP32", "FP64", "FP16", "BYTES", ""])),
                shape=data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5) | st.just([1, 3, 8, 8])),
            )
        message.raw_input_contents.extend(data.draw(st.lists(st.binary(max_size=64), max_size=3)))
        if data.draw(st.booleans()):
            message.outputs.add(name=data.draw(st.sampled_from(["y", "z"])))
        body = message.SerializeToString()
    else:
        body = data.draw(st.binary(max_size=200))
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(body, timeout=10)
    assert caught.value.code() in REFUSED, caught.value
    assert caught.value.details()


def test_grpc_garbage_and_unknown_methods(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        for method, code in (
            ("ModelMetadata", grpc.StatusCode.INVALID_ARGUMENT),
            ("SystemSharedMemoryRegister", grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"\xff\xff\xff", timeout=10)
            assert caught.value.code() is code


@pytest.fixture(scope="module", autouse=True)
def still_well(server: Server) -> Any:
    """After all of it: the same processes, not one answer of 500 or more, and requests in order still answered."""
    before = [worker.pid for worker in server.workers]
    yield
    assert [worker.pid for worker in server.workers] == before
    assert not [line for line in server.log if line.get("status", 0) >= 500 or line["level"] == "error"]
    import tritonclient.http as triton_http

    with server.http_client() as client:
        assert np.isfinite(client.infer("kep", batch_input(triton_http, images(3))).as_numpy("y")).all()


def _post(server: Server, body: bytes, headers: dict[str, str] | None = None) -> Any:
    return server.session.post(f"{server.url}/v2/models/kep/infer", data=body, headers=headers, timeout=10)


def _peak_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _check(answer: Any) -> None:
    assert answer.status_code in CLIENT, answer.text
    document = answer.json()
    assert list(document) == ["error"]
    assert 10 < len(document["error"]) < 600
    assert "Traceback" not in document["error"]


def _raw(server: Server, data: bytes, *, close: bool = False) -> int | None:
    """Status of the answer to raw bytes; None: none came."""
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as link:
        link.sendall(data)
        if close:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return None
        link.shutdown(socket.SHUT_WR)
        answer = link.recv(4096)
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else None
