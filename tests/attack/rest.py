"""Attacks on the HTTP side, each for about two seconds: ``python -m tests.attack.rest NAME ADDRESSES``."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import requests

from tests.attack.harness import Record, attacked, in_threads
from tests.serving.servers import Server

__all__ = ["ATTACKS", "LARGE", "run_attack", "unexpected"]

#: Shape of the inputs of the model ``large``: JSON of more than 64 MiB.
LARGE = (60, 512, 512)
SECONDS = 1.5
MIB = 1 << 20
_POST = "POST /v2/models/large/infer HTTP/1.1\r\nHost: a\r\n"
_START = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,60,512,512],"data":['


def empty_lists(address: str) -> Counter[str]:
    """Four times 64 MiB of ``[],`` in 65 kB of gzip."""
    return _bombs(address, _START + b"[]," * (64 * MIB // 3 - 100) + b"[]]}]}")


def nested_lists(address: str) -> Counter[str]:
    """Four times 64 MiB of lists in lists."""
    return _bombs(address, _START + b"[[[1]]]," * (8 * MIB - 20) + b"[[[1]]]]}]}")


def deep_lists(address: str) -> Counter[str]:
    """Four times 60 MiB of brackets that open."""
    return _bombs(address, _START + b"[" * (60 * MIB))


def many_objects(address: str) -> Counter[str]:
    """Four times 60 MiB of objects where there should be numbers."""
    return _bombs(address, _START + b"{}," * (20 * MIB) + b"1]}]}")


def one_text(address: str) -> Counter[str]:
    """Four times a text of 60 MiB."""
    return _bombs(address, b'{"id":"' + b"a" * (60 * MIB) + b'","inputs":[]}')


def valid_numbers(address: str) -> Counter[str]:
    """Four times as many numbers as the model takes: nothing is wrong with them."""
    count = math.prod(LARGE)
    return _bombs(address, _START + b"1," * (count - 1) + b"1]}]}")


def declared_lengths(address: str) -> Counter[str]:
    """500 bodies of 64 MiB, by what they say, of which a byte is sent."""
    return _held(address, 500, f"{_POST}Content-Length: {64 * MIB}\r\n\r\n{{".encode())


def chunked_bodies(address: str) -> Counter[str]:
    """500 bodies in chunks, of which one is sent."""
    return _held(address, 500, f"{_POST}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n".encode())


def slow_bodies(address: str) -> Counter[str]:
    """500 bodies that come byte by byte."""
    return _held(address, 500, f"{_POST}Content-Length: 1000\r\n\r\n".encode(), drip=b"{")


def slow_heads(address: str) -> Counter[str]:
    """1,100 heads that come byte by byte."""
    return _held(address, 1100, b"GET /v2 HTTP/1.1\r\nHost: a", drip=b"a")


def half_bodies(address: str) -> Counter[str]:
    """64 bodies of 60 MiB, of which 32 MiB are sent."""
    head = f"{_POST}Inference-Header-Content-Length: 100\r\nContent-Length: {60 * MIB}\r\n\r\n".encode()

    def send() -> str:
        with _connected(address) as link:
            link.sendall(head)
            for _ in range(64):
                link.sendall(bytes(MIB // 2))
            return _status(link)

    return _at_once(64, send)


def never_reading(address: str) -> Counter[str]:
    """500 clients that ask for ten metrics each, and read nothing."""
    return _held(
        address, 500, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", drip=b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    )


def idle_connections(address: str) -> Counter[str]:
    """1,030 connections that ask nothing."""
    return _held(address, 1030, b"")


def many_idle_connections(address: str) -> Counter[str]:
    """10,000 connections that ask nothing, or as many as this process may open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100
    return _held(address, min(10_000, most), b"")


def pipelines(address: str) -> Counter[str]:
    """Requests sent ahead of their answers, 5,000 at a time."""
    return _flood(address, b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n" * 5000)


def many_fields(address: str) -> Counter[str]:
    """Heads of 100,000 fields."""
    return _flood(address, b"GET /v2 HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(100_000)))


def long_field(address: str) -> Counter[str]:
    """Heads with one field of 64 MiB."""
    return _flood(address, b"GET /v2 HTTP/1.1\r\na: " + b"b" * (64 * MIB))


def resets(address: str) -> Counter[str]:
    """Up to 400 connections a second that are reset in the middle of a body: any more, and the clients take the CPU."""
    return _reset(address, f"{_POST}Content-Length: 100000\r\n\r\n".encode() + bytes(50_000), 0.01)


def empty_resets(address: str) -> Counter[str]:
    """Connections that are reset before they have sent anything, as fast as they can be made."""
    return _reset(address, b"", 0.0)


ATTACKS: dict[str, Callable[[str], Counter[str]]] = {
    attack.__name__: attack
    for attack in (
        empty_lists, nested_lists, deep_lists, many_objects, one_text, valid_numbers, declared_lengths, chunked_bodies,
        slow_bodies, slow_heads, half_bodies, never_reading, idle_connections, many_idle_connections, pipelines,
        many_fields, long_field, resets, empty_resets,
    )
}  # fmt: skip


#: How a connection may end for the attacker, and what he may get: a refusal, or the answer if nothing was wrong.
_ENDS = {"BrokenPipeError", "ConnectionAbortedError", "ConnectionResetError", "TimeoutError"}
_STATUSES = _ENDS | {"200", "400", "408", "413", "429", "431", "503", "held", "closed", "reset", "flooded"}


def unexpected(statuses: Iterable[str]) -> set[str]:
    """Those that no attack may get, such as 500."""
    return set(statuses) - _STATUSES


def run_attack(server: Server, attack: str, limit_s: float = 60) -> Record:
    """Run an attack on a server, while a client asks its model ``kep`` over HTTP."""
    tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}
    with requests.Session() as session:

        def behave(attempts: int = 3) -> None:
            try:
                answer = session.post(f"{server.url}/v2/models/kep/infer", json={"inputs": [tensor]}, timeout=60)
            except requests.ConnectionError:  # an idle connection was closed for a new one: every client retries
                if attempts == 1:
                    raise
                return behave(attempts - 1)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["shape"] == [1, 5]
            return None

        behave()
        return attacked(server, "tests.attack.rest", attack, behave, limit_s)


def _bombs(address: str, body: bytes) -> Counter[str]:
    packed = gzip.compress(body, 1)
    head = f"{_POST}Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()

    def send() -> str:
        with _connected(address) as link:
            link.sendall(head + packed)
            return _status(link)

    return _at_once(4, send)


def _held(address: str, connections: int, start: bytes, drip: bytes = b"") -> Counter[str]:
    """Open connections that wait, hold them, and send a little more on each twice a second."""
    statuses: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        links = []
        for _ in range(connections):
            try:
                link = stack.enter_context(_connected(address))
                link.sendall(start)
                links.append(link)
            except OSError as error:
                statuses[type(error).__name__] += 1
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for link in links if drip else ():
                with contextlib.suppress(OSError):
                    link.sendall(drip)
            time.sleep(0.5)
        statuses.update(_states(links))
    return statuses


def _states(links: Iterable[socket.socket]) -> Iterable[str]:
    for link in links:
        link.setblocking(False)
        try:
            data = link.recv(100)
        except BlockingIOError:
            yield "held"
        except OSError as error:
            yield type(error).__name__
        else:
            yield data[9:12].decode() or "closed"


def _flood(address: str, data: bytes) -> Counter[str]:
    """Send the same on four connections for some seconds; connect again when the server ends one."""
    end = time.monotonic() + SECONDS

    def send() -> str:
        while time.monotonic() < end:
            with _connected(address) as link, contextlib.suppress(OSError):
                link.settimeout(SECONDS)
                link.sendall(data)
                while time.monotonic() < end and link.recv(1 << 16):
                    pass
        return "flooded"

    return _at_once(4, send)


def _status(link: socket.socket) -> str:
    link.settimeout(50)
    return link.recv(100)[9:12].decode() or "closed"


def _at_once(clients: int, send: Callable[[], str]) -> Counter[str]:
    statuses: Counter[str] = Counter()

    def run() -> None:
        try:
            status = send()
        except OSError as error:
            status = type(error).__name__
        statuses[status] += 1

    in_threads(run, clients)
    return statuses


def _reset(address: str, data: bytes, pause_s: float) -> Counter[str]:
    end = time.monotonic() + SECONDS

    def send() -> str:
        while time.monotonic() < end:
            with _connected(address) as link:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(OSError):
                    link.sendall(data)
            time.sleep(pause_s)
        return "reset"

    return _at_once(4, send)


def _connected(address: str) -> socket.socket:
    host, port = address.split("//")[1].split(":")
    return socket.create_connection((host, int(port)), timeout=10)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(ATTACKS[sys.argv[1]](json.loads(sys.argv[2])["http"])))  # noqa: T201 - the result
