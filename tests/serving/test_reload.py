"""A model changes when it is told to, and at no other time."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.serving.servers import Server, batch_input, images, running
from tests.serving.test_survival import until


def put(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def ask(server: Server, model: str = "model", version: str = "") -> np.ndarray:
    with server.http_client() as client:
        return client.infer(model, batch_input(triton_http, images(2)), version).as_numpy("y")


def events(server: Server, event: str) -> list[dict[str, Any]]:
    return [line for line in server.log if line["event"] == event]


def hang_up(server: Server, event: str) -> dict[str, Any]:
    """Tell the server to reload, and wait for what it says."""
    before = len(events(server, event))
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(events(server, event)) > before)
    return events(server, event)[-1]


def test_restart_finds_another_bundle(bundles: Path, tmp_path: Path) -> None:
    """The worker dies after somebody has put another bundle at the path: nothing of that one is ever served."""
    put(bundles / "net" / "1", tmp_path / "model")
    with running(tmp_path, tmp_path / "model", "--threads", "1") as server:
        first = ask(server)
        put(bundles / "net" / "2", tmp_path / "model")
        np.testing.assert_array_equal(ask(server), first)
        server.workers[0].kill()
        until(lambda: bool(events(server, "worker cannot start")))
        with pytest.raises(InferenceServerException, match="model model is not ready: holds another bundle than"):
            ask(server)
        assert server.request("GET", "/v2/health/ready").status_code == 503
        assert server.request("GET", "/v2/health/live").status_code == 200
        [entry] = server.request("POST", "/v2/repository/index").json()
        assert entry["state"] == "UNAVAILABLE"
        assert entry["reason"].startswith("holds another bundle")
        threading.Event().wait(1.5)  # three attempts
        assert len(events(server, "worker cannot start")) == 1
        put(bundles / "net" / "1", tmp_path / "model")
        until(lambda: server.request("GET", "/v2/health/ready").status_code == 200)
        np.testing.assert_array_equal(ask(server), first)


def test_reload(bundles: Path, tmp_path: Path) -> None:
    """SIGHUP: the new bundle takes over, no request is lost, and the digest shows which one it is."""
    put(bundles / "net" / "1", tmp_path / "model")
    with running(tmp_path, tmp_path / "model", "--threads", "1") as server:
        first, old = ask(server), server.workers[0].pid
        digest = events(server, "ready")[0]["bundles"]["model"]["1"]
        assert f'digest="{digest}' in server.request("GET", "/metrics").text
        put(bundles / "net" / "2", tmp_path / "model")
        stop, answers = threading.Event(), list[Any]()

        def client() -> None:
            while not stop.is_set():
                answers.append(ask(server))

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        line = hang_up(server, "reloaded")
        until(lambda: not np.array_equal(answers[-1], first))
        stop.set()
        for thread in threads:
            thread.join()
        second = ask(server)
        assert not np.allclose(second, first)
        for answer in answers:  # one model or the other, never an error
            assert np.allclose(answer, first, rtol=1e-4, atol=1e-5) or np.allclose(answer, second, rtol=1e-4, atol=1e-5)
        assert line["bundles"]["model"]["1"] != digest
        metrics = server.request("GET", "/metrics").text
        assert f'digest="{digest}' not in metrics
        assert f'digest="{line["bundles"]["model"]["1"]}' in metrics
        until(lambda: old not in {worker.pid for worker in server.workers})
        assert len(server.workers) == 1
        assert 'trtkp_worker_restarts_total{model="model",version="1"} 0.0' in metrics


def test_reload_that_fails_changes_nothing(bundles: Path, tmp_path: Path) -> None:
    put(bundles / "net" / "1", tmp_path / "model")
    with running(tmp_path, tmp_path / "model", "--threads", "1") as server:
        first, workers = ask(server), [worker.pid for worker in server.workers]
        (tmp_path / "model" / "engine.onnx").write_bytes(b"")
        line = hang_up(server, "reload failed")
        assert "engine.onnx: has 0 bytes" in line["error"]
        np.testing.assert_array_equal(ask(server), first)
        assert [worker.pid for worker in server.workers] == workers
        put(bundles / "net" / "1", tmp_path / "model")
        hang_up(server, "reloaded")  # the same bundle: its worker stays
        assert [worker.pid for worker in server.workers] == workers


def test_versions_come_and_go(bundles: Path, tmp_path: Path) -> None:
    put(bundles / "net" / "1", tmp_path / "model" / "1")
    with running(tmp_path, tmp_path / "model", "--threads", "1") as server:
        first, worker = ask(server), server.workers[0].pid
        put(bundles / "net" / "2", tmp_path / "model" / "2")
        assert hang_up(server, "reloaded")["models"] == {"model": ["1", "2"]}
        assert worker in {process.pid for process in server.workers}
        np.testing.assert_array_equal(ask(server, version="1"), first)
        assert not np.allclose(ask(server), first)
        shutil.rmtree(tmp_path / "model" / "1")
        assert hang_up(server, "reloaded")["models"] == {"model": ["2"]}
        with pytest.raises(InferenceServerException, match="has no version '1', only 2"):
            ask(server, version="1")
        assert 'trtkp_model_ready{model="model",version="1"}' not in server.request("GET", "/metrics").text
        until(lambda: len(server.workers) == 1)


def test_closed_terminal_ends_the_server(bundles: Path, tmp_path: Path) -> None:
    """The system sends the same signal when the terminal of a server is closed."""
    command = [sys.executable, "-m", "trtkp", "serve", str(bundles / "kep"), "--port", "0", "--grpc-port", "-1"]
    root = str(Path(__file__).parents[2])
    with (tmp_path / "out").open("w") as out:
        pid, terminal = pty.fork()
        if pid == 0:  # the child leads a session of its own, with this terminal
            os.dup2(out.fileno(), 1)
            os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": root})  # noqa: S606 - as meant
    try:
        until(lambda: "ready" in (tmp_path / "out").read_text())
    finally:
        os.close(terminal)
    process = psutil.Process(pid)
    until(lambda: process.status() == psutil.STATUS_ZOMBIE, seconds=30)
    assert os.waitpid(pid, 0)[1] == 0
    assert subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 1
