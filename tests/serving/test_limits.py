"""The limits that the guide promises: time to read an answer, connections, health beyond them, descriptors."""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trtkp
from tests.serving.servers import Server, running
from tests.serving.test_survival import until
from trtkp.pipeline.options import BuildOptions

REQUEST = b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [' + b"1," * 191 + b"1]}]}"


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as link:
        yield link


def post(path: str, body: bytes, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def status(link: socket.socket) -> int:
    """Status of the next answer; 0 if the connection was closed."""
    head = b""
    while b"\r\n\r\n" not in head:
        more = link.recv(65536)
        if not more:
            return 0
        head += more
    return int(head.split()[1])


def get(server: Server, path: str) -> int:
    with connected(server) as link:
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return status(link)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose answer, 16 MiB, is larger than what the system holds for a client that does not read."""
    folder = tmp_path_factory.mktemp("wide")
    weight = np.ones((64, 1, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c"),
        helper.make_node("Resize", ["c", "", "s"], ["y"], mode="nearest"),
    ]
    scales = np.array([1, 1, 128, 128], np.float32)
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64, 256, 256])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True),
            helper.make_tensor("s", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "wide.onnx")
    shape = ("1x1x2x2",)
    options = BuildOptions(threads=1, min=shape, opt=shape, max=shape)
    trtkp.build(folder / "wide.onnx", folder / "wide", method="none", options=options)
    return folder / "wide"


@pytest.mark.parametrize("rate", [0, 32])
def test_answer_that_is_not_read(wide: Path, tmp_path: Path, rate: int) -> None:
    """Not at all, or in drops, which would take hours. The connection ends, and its memory is given back."""
    with running(tmp_path, wide, "--threads", "1", "--timeout", "2") as server, connected(server) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        document = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": [1, 1, 1, 1]}],
            "parameters": {"binary_data_output": True},
        }
        link.sendall(post("/v2/models/wide/infer", json.dumps(document).encode()))
        until(lambda: held(server) > 16 << 20)  # the answer waits

        def given_back() -> bool:
            assert not rate or link.recv(rate)
            return held(server) == 0

        until(given_back, seconds=30)  # about 2 s
        time.sleep(0.1)
        assert get(server, "/v2/health/ready") == 200


def held(server: Server) -> float:
    text = server.request("GET", "/metrics").text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("trtkp_held_bytes "))


def test_body_that_stops(bundles: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundles / "kep", "--threads", "1", "--timeout", "1") as server, connected(server) as link:
        whole = post("/v2/models/kep/infer", REQUEST)
        link.sendall(whole[:-10])
        start = time.monotonic()
        assert status(link) in (0, 400, 408)
        assert time.monotonic() - start < 20  # about 1 s
        until(lambda: held(server) == 0)


def test_health_beyond_the_connections(bundles: Path, tmp_path: Path) -> None:
    """All connections compute, as the worker stands still: health is answered on further ones, and nothing else is."""
    with running(tmp_path, bundles / "kep", "--threads", "1", "--connections", "4") as server, ExitStack() as stack:
        links = [stack.enter_context(connected(server)) for _ in range(4)]
        server.workers[0].suspend()
        for link in links:
            link.sendall(post("/v2/models/kep/infer", REQUEST))
        until(lambda: get(server, "/v2") == 503)
        for _ in range(100):  # more than the reserve holds
            extra = stack.enter_context(connected(server))
            extra.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(extra) == 200
        with server.grpc_client() as client:
            assert client.is_server_live()
        server.workers[0].resume()
        assert [status(link) for link in links] == [200] * 4
        until(lambda: get(server, "/v2") == 200)


def test_few_descriptors(bundles: Path, tmp_path: Path) -> None:
    """Clients take all connections that 200 descriptors allow; a worker that dies is started again all the same."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -n 200\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    arguments = (bundles / "kep", "--threads", "1")
    with running(tmp_path, *arguments, python=str(python)) as server, ExitStack() as stack:
        [line] = [line for line in server.log if line["event"] == "fewer connections than asked for"]
        assert 1 <= line["connections"] < 200
        for _ in range(300):
            stack.enter_context(connected(server))
        server.workers[0].send_signal(signal.SIGKILL)
        until(lambda: any(line["event"] == "worker restarted" for line in server.log))
        assert not [line for line in server.log if line["event"] == "worker cannot start"]
        assert get(server, "/v2/health/ready") == 200
        answers: list[int] = []

        def ask() -> None:
            with connected(server) as link:
                link.sendall(post("/v2/models/kep/infer", REQUEST))
                answers.append(status(link))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 4


def test_reset_while_the_answer_is_computed(bundles: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundles / "kep", "--threads", "1") as server:
        for _ in range(50):
            with connected(server) as link:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.sendall(post("/v2/models/kep/infer", REQUEST))
        until(lambda: held(server) == 0)
        assert get(server, "/v2/health/ready") == 200
        assert not [line for line in server.log if line["level"] == "error"]


def test_fields_after_a_body(bundles: Path, tmp_path: Path) -> None:
    """A chunked body, and then a field without end: HTTP parsers keep all of it."""
    with running(tmp_path, bundles / "kep", "--threads", "1") as server, connected(server) as link:
        link.sendall(b"POST /v2/models/kep/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012 - where it ends depends on buffers
            for _ in range(1000):
                link.sendall(b"a" * 65536)
                time.sleep(0.002)
            raise AssertionError("64 MiB were taken")


def test_dead_jobs_leave_the_queue(bundles: Path, tmp_path: Path) -> None:
    """Requests that have timed out neither hold memory nor a place, while the engine stands still."""
    with running(tmp_path, bundles / "kep", "--threads", "1", "--queue", "4") as server, ExitStack() as stack:
        server.workers[0].suspend()
        late = REQUEST.replace(b'{"inputs"', b'{"parameters": {"timeout": 1000}, "inputs"')
        for _ in range(12):
            link = stack.enter_context(connected(server))
            link.sendall(post("/v2/models/kep/infer", late))
            assert status(link) == 504
        assert held(server) == 0
        link = stack.enter_context(connected(server))
        link.sendall(post("/v2/models/kep/infer", REQUEST))
        server.workers[0].resume()
        assert status(link) == 200
