"""A server under attack, seen from outside: how late its health is answered, what it holds, who is not served."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import hpack
import psutil
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

from tests.serving.raw_http2 import LIVE, framed
from tests.serving.servers import Server

__all__ = ["Record", "attacked", "errors_in", "in_threads", "must_withstand"]

#: ``--max-pending``, and what attacks may cost beyond it, in bytes; and how late health may be answered, in seconds.
_MEMORY, _HEALTH_S = (1 << 30) + (200 << 20), 0.5

_PAUSE_S = 0.05


@dataclass
class Record:
    """What happened during an attack.

    Attributes:
        health_s: the longest wait for an answer about the server's health, over HTTP and over gRPC; each is asked on a
            new connection.
        calm_s: the longest wait in the second before the attack: what the machine, not the attack, makes of it.
        peak_bytes: most resident memory of the server and its workers.
        before_bytes: the same before the attack.
        served: requests of a well-behaved client that were answered right.
        lost: those that were not, by their errors.
        statuses: what the attacker got.
        errors: lines of level error, and tracebacks, that the server logged meanwhile.
    """

    health_s: dict[str, float] = field(default_factory=dict)
    calm_s: float = 0.0
    peak_bytes: int = 0
    before_bytes: int = 0
    served: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The record as a document."""
        return asdict(self)


def attacked(server: Server, module: str, attack: str, behave: Callable[[], None], limit_s: float = 60) -> Record:
    """Run an attack in a process of its own, while probes ask for the server's health and a client behaves well.

    Args:
        server: the server.
        module: module of the attack; run as ``python -m module attack server.json``.
        attack: its name there.
        behave: one request of the well-behaved client; raises if it was not answered right.
        limit_s: seconds after which the attacker is killed.
    """
    server_process = psutil.Process(server.process.pid)
    processes = [server_process, *server_process.children(recursive=True)]
    logged = len(server.log_file.read_text())
    record, done = Record(before_bytes=_resident(processes)), threading.Event()

    def probe(name: str, ask: Callable[[Server], None]) -> None:
        record.health_s[name] = 0.0
        while not done.is_set():
            start = time.monotonic()
            try:
                ask(server)
            except Exception as error:
                record.lost[f"health over {name}: {str(error) or type(error).__name__}"] += 1
            record.health_s[name] = max(record.health_s[name], time.monotonic() - start)
            done.wait(_PAUSE_S)

    def client() -> None:
        while not done.is_set():
            try:
                behave()
                record.served += 1
            except Exception as error:
                record.lost[str(error)[:200]] += 1
            done.wait(_PAUSE_S)

    def watch() -> None:
        while not done.wait(0.02):
            record.peak_bytes = max(record.peak_bytes, _resident(processes))

    threads = [
        threading.Thread(target=probe, args=("http", _ask_http)),
        threading.Thread(target=probe, args=("grpc", _ask_grpc)),
        threading.Thread(target=client),
        threading.Thread(target=watch),
    ]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        record.calm_s = max(record.health_s.values())
        attacker = subprocess.run(
            [sys.executable, "-m", module, attack, json.dumps(server.addresses)],
            capture_output=True, text=True, check=False, timeout=limit_s,
        )  # fmt: skip
        record.statuses = json.loads(attacker.stdout) if attacker.returncode == 0 else {attacker.stderr[-2000:]: 1}
    except subprocess.TimeoutExpired:
        record.statuses = {"the attack took too long": 1}
    finally:
        done.set()
        for thread in threads:
            thread.join()
    record.errors = errors_in(server.log_file.read_text()[logged:])
    return record


def must_withstand(attack: Callable[[], Record], unexpected: Callable[[dict[str, int]], set[str]]) -> None:
    """Attack a server, and fail unless it does what the guide promises.

    Health has three tries: other programs on the machine can delay one run, while an attack that succeeds delays each.
    """
    record = Record()
    for _ in range(3):
        record = attack()
        assert not record.lost, record
        assert not record.errors, record
        assert not unexpected(record.statuses), record
        assert record.served >= 5, record
        assert record.peak_bytes - record.before_bytes < _MEMORY, record
        if max(record.health_s.values()) < _HEALTH_S:
            return
    raise AssertionError(record)


def in_threads(run: Callable[[], None], count: int) -> None:
    """Run a function in so many threads at once, and wait for them."""
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def errors_in(log: str) -> list[str]:
    """Lines of a server's log that are of level error or worse, or hold a traceback."""
    return [
        line
        for line in log.splitlines()
        if "Traceback" in line or (line.startswith("{") and json.loads(line)["level"] in ("error", "critical"))
    ]


def _ask_http(server: Server) -> None:
    connection = http.client.HTTPConnection(server.host, timeout=20)
    try:
        connection.request("GET", "/v2/health/live")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"live":true}'), answer.status
    finally:
        connection.close()


#: A whole call of ``ServerLive``, and the message of its answer. Made once: the probe must not take the time of h2.
_LIVE_CALL = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + SettingsFrame().serialize()
    + HeadersFrame(
        1,
        hpack.Encoder().encode([
            (":method", "POST"), (":scheme", "http"), (":path", LIVE), (":authority", "a"), ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]),
        flags=["END_HEADERS"],
    ).serialize()
    + DataFrame(1, framed(b""), flags=["END_STREAM"]).serialize()
)  # fmt: skip
_LIVE_ANSWER = framed(b"\x08\x01")


def _ask_grpc(server: Server) -> None:
    host, port = server.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as link:
        link.sendall(_LIVE_CALL)
        data = b""
        while _LIVE_ANSWER not in data:
            more = link.recv(4096)
            assert more, "the connection was closed"
            data += more


def _resident(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):  # a worker that has ended
            total += process.memory_info().rss
    return total
