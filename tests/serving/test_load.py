"""``trtkp bench --load``: what it counts, and from when."""

from __future__ import annotations

import asyncio
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.cli.conftest import Trtkp, trtkp
from tests.serving.servers import Server
from trtkp.errors import InputError, JobError
from trtkp.serving.server import load
from trtkp.serving.server.load import measure_load

__all__ = ["trtkp"]


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    return server.url if request.param == "http" else f"grpc://{server.grpc}"


@pytest.mark.serial
def test_closed_loop(url: str) -> None:
    result = measure_load(url, "kep", batch=4, clients=3, seconds=0.5)
    assert (result.loop, result.clients, result.rate, result.errors, result.error_ms) == ("closed", 3, None, {}, {})
    assert result.throughput == result.requests / result.seconds
    assert result.rows_per_second == 4 * result.throughput
    points = [result.latency_ms[name] for name in ("p50", "p90", "p95", "p99", "p99.9", "max")]
    assert points == sorted(points)
    # three clients, each with one request on its way: Little's law
    assert result.throughput * result.latency_ms["mean"] / 1e3 == pytest.approx(3, rel=0.3)


def test_open_loop(url: str) -> None:
    result = measure_load(url, "kep", rate=50, seconds=1)
    assert (result.loop, result.clients, result.rate, result.requests, result.errors) == ("open", None, 50, 50, {})


@pytest.mark.serial
def test_stall_is_charged_to_everyone_who_had_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers one at a time and stalls once for 0.3 s: a third of the schedule waited for it."""
    lock, calls = asyncio.Lock(), 0

    async def stalling(*_: object) -> load._Send:
        async def send() -> str | None:
            nonlocal calls
            calls += 1
            stall = 0.3 if calls == 23 else 0.0
            async with lock:
                await asyncio.sleep(stall)
            return None

        return send

    monkeypatch.setattr(load, "_open_http", stalling)
    result = measure_load("http://x", "m", rate=200, seconds=1)
    assert result.requests == 200
    assert result.latency_ms["max"] > 290
    assert result.latency_ms["p90"] > 100
    assert result.latency_ms["p50"] < 50


def test_refusals_are_counted_apart(server: Server) -> None:
    with pytest.raises(JobError, match="model kep answers 400"):
        measure_load(server.url, "kep", batch=65)
    with pytest.raises(InputError, match="no model 'no'"):
        measure_load(server.url, "no")
    with pytest.raises(InputError, match="no model 'no'"):
        measure_load(f"grpc://{server.grpc}", "no")
    with socket.socket() as deaf:  # holds a port and does not listen
        deaf.bind(("127.0.0.1", 0))
        with pytest.raises(JobError, match="no answer"):
            measure_load(f"http://127.0.0.1:{deaf.getsockname()[1]}", "kep")
    with pytest.raises(InputError, match="must begin with http://"):
        measure_load("ftp://x", "kep")
    for options in ({"batch": 0}, {"clients": 0}, {"seconds": 0}, {"rate": -1}):
        with pytest.raises(InputError, match="must be more than 0"):
            measure_load(server.url, "kep", **options)  # type: ignore[arg-type]


def test_command(trtkp: Trtkp, server: Server) -> None:
    done = trtkp("bench", "--load", server.url, "--model", "kep", "--clients", "2", "--seconds", "0.2", "--batch", "2")
    assert (done.status, done.err) == (0, "")
    heading, row = done.out.splitlines()
    assert heading.split()[:4] == ["loop", "model", "batch", "requests/s"]
    assert row.split()[:5] == ["closed,", "2", "clients", "kep", "2"]
    done = trtkp("bench", "--load", server.url, "--model", "kep", "--rate", "20", "--seconds", "0.3", "--json")
    document = done.document
    assert (document["loop"], document["rate"], document["errors"]) == ("open", 20, {})
    assert trtkp("bench", "--load", server.url).message == "--load needs the model's name; give --model"
    assert "not bundles" in trtkp("bench", "kep", "--load", server.url, "--model", "kep").message


@pytest.mark.parametrize("document", ["{}", "[]", '{"inputs": [{"name": "x"}]}', '{"inputs": 3}', "null"])
def test_another_kind_of_server(trtkp: Trtkp, document: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(document.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        done = trtkp("bench", "--load", f"http://127.0.0.1:{other.server_port}", "--model", "m", "--seconds", "1")
        other.shutdown()
    assert done.status == 2
    assert "/v2/models/m: the answer is not that of an Open Inference Protocol server" in done.message
