"""A server under attack, seen from outside: how late its health is answered, what it holds, who is not served."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from tests.serving.raw_http2 import LIVE, RawHttp2, framed
from tests.serving.servers import Server

__all__ = ["Record", "attacked"]

_PAUSE_S = 0.05


@dataclass
class Record:
    """What happened during an attack.

    Attributes:
        health_s: the longest wait for an answer about the server's health, over HTTP and over gRPC; each is asked on a
            new connection.
        peak_bytes: most resident memory of the server and its workers.
        before_bytes: the same before the attack.
        served: requests of a well-behaved client that were answered right.
        lost: those that were not, by their errors.
        statuses: what the attacker got.
    """

    health_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    before_bytes: int = 0
    served: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
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
    return record


def _ask_http(server: Server) -> None:
    connection = http.client.HTTPConnection(server.host, timeout=20)
    try:
        connection.request("GET", "/v2/health/live")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"live":true}'), answer.status
    finally:
        connection.close()


def _ask_grpc(server: Server) -> None:
    with RawHttp2(server.grpc, timeout=20) as client:
        end = client.end_of(client.call(LIVE, framed(b"")), 20)
        assert end == ("0", ""), end


def _resident(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):  # a worker that has ended
            total += process.memory_info().rss
    return total
