"""Dead workers, overload, shutdown: errors instead of hangs, and no accepted request lost."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.serving.loads import build_digits, overload
from tests.serving.servers import Server, batch_input, images, running

Answers = Callable[[np.ndarray], np.ndarray]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> float:
    """Seconds until it holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it never came"
        time.sleep(0.01)
    return time.monotonic() - start


def hammer(server: Server, stop: threading.Event, outcomes: list[Any], answers: Answers) -> list[threading.Thread]:
    """Clients that send until told to stop; what came back, or what was refused."""
    expected = answers(images(8))

    def client(number: int) -> None:
        module: Any = triton_grpc if number % 2 else triton_http
        options = {} if number % 2 else {"connection_timeout": 5, "network_timeout": 10}
        with server.grpc_client() if number % 2 else server.http_client(**options) as connection:
            while not stop.is_set():
                try:
                    result = connection.infer("kep", batch_input(module, images(8)))
                    good = np.allclose(result.as_numpy("y"), expected, rtol=1e-4, atol=1e-5)
                    outcomes.append("ok" if good else "wrong")
                except InferenceServerException as error:
                    outcomes.append(error.status())
                    time.sleep(0.01)
                except OSError as error:
                    outcomes.append(type(error).__name__)
                    time.sleep(0.01)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    return threads


def test_killed_worker(bundles: Path, tmp_path: Path, answers: Answers) -> None:
    with running(tmp_path, bundles / "kep", bundles / "net" / "1", "--threads", "1") as server:
        stop, outcomes = threading.Event(), list[Any]()
        threads = hammer(server, stop, outcomes, answers)
        until(lambda: len(outcomes) > 50)
        victim = max(server.workers, key=lambda worker: sum(worker.cpu_times()[:2]))  # the one that is asked
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: any(line["event"] == "worker died" for line in server.log))
        until(lambda: any(line["event"] == "worker restarted" for line in server.log))
        restarted = len(outcomes)  # up to here many were refused
        until(lambda: len(outcomes) > restarted + 100)
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a client hangs"
        assert set(outcomes) <= {"ok", "503", "StatusCode.UNAVAILABLE"}, Counter(outcomes)
        assert outcomes[-1] == "ok"
        assert server.request("GET", "/v2/health/ready").status_code == 200
        restarts = [line for line in server.request("GET", "/metrics").text.splitlines()
                    if line.startswith("trtkp_worker_restarts_total")]  # fmt: skip
        assert sum(float(line.split()[-1]) for line in restarts) == 1
        assert victim.pid not in {worker.pid for worker in server.workers}
        assert len(server.workers) == 2


def test_changed_bundle_is_not_started_again(bundles: Path, tmp_path: Path) -> None:
    """Hashes are checked before every start: a worker that dies over a changed bundle stays down, and says why."""
    bundle = shutil.copytree(bundles / "kep", tmp_path / "kep")
    with running(tmp_path, bundle, "--threads", "1") as server:
        with (bundle / "engine.onnx").open("r+b") as file:
            file.seek(1000)
            file.write(b"changed")
        server.workers[0].kill()
        until(lambda: any(line["event"] == "worker cannot start" for line in server.log))
        [line] = [line for line in server.log if line["event"] == "worker cannot start"][:1]
        assert "engine.onnx: was changed since it was built" in line["error"]
        assert server.request("GET", "/v2/health/live").status_code == 200
        assert server.request("GET", "/v2/health/ready").status_code == 503
        with server.http_client() as client, pytest.raises(InferenceServerException, match="kep is not ready"):
            client.infer("kep", batch_input(triton_http, images(1)))
        shutil.rmtree(bundle)
        shutil.copytree(bundles / "kep", bundle)
        until(lambda: server.request("GET", "/v2/health/ready").status_code == 200)


@pytest.mark.serial
def test_hung_worker(bundles: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundles / "kep", "--threads", "1", "--timeout", "1") as server:
        server.workers[0].suspend()
        start = time.monotonic()
        with server.http_client() as client:
            with pytest.raises(InferenceServerException, match=r"no answer within 1 s|did not answer for 1 s"):
                client.infer("kep", batch_input(triton_http, images(1)))
            assert time.monotonic() - start < 20  # far from the 30 s without --timeout
            until(lambda: any(line["event"] == "worker restarted" for line in server.log))
            assert client.infer("kep", batch_input(triton_http, images(1))).as_numpy("y").shape == (1, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_under_load(bundles: Path, tmp_path: Path, answers: Answers, number: int) -> None:
    """Every request that was let in is answered; later ones are refused, in words or by a closed port."""
    with running(tmp_path, bundles / "kep", "--threads", "1") as server:
        stop, outcomes = threading.Event(), list[Any]()
        threads = hammer(server, stop, outcomes, answers)
        until(lambda: outcomes.count("ok") > 100)
        workers = server.workers
        assert server.stop(number) == 0
        assert not any(worker.is_running() for worker in workers)
        time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
        answered = Counter(line["status"] for line in server.log if line["event"] == "request")
        assert set(answered) <= {200, 503}
        assert answered[200] == outcomes.count("ok")  # none of those let in was lost on the way
        assert not {"wrong", "500", "504", "StatusCode.INTERNAL"} & set(outcomes), Counter(outcomes)
        assert [line["event"] for line in server.log[-1:]] == ["stopped"]


def test_slow_requests_are_finished_before_the_end(bundles: Path, tmp_path: Path) -> None:
    """A batch that is held back by a long delay when SIGTERM comes."""
    with running(tmp_path, bundles / "kep", "--threads", "1", "--max-delay", "4000") as server:
        results: list[Any] = []

        def ask() -> None:
            with server.http_client() as client:
                results.append(client.infer("kep", batch_input(triton_http, images(2))).as_numpy("y").shape)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: 'trtkp_queue_requests{model="kep",version="1"} 3.0' in server.request("GET", "/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.request("GET", "/v2/health/ready").status_code == 503)
        refused = server.request("POST", "/v2/models/kep/infer", data=b"{}")
        assert (refused.status_code, refused.json()["error"]) == (503, "the server is shutting down")
        for thread in threads:
            thread.join()
        assert results == [(2, 5)] * 3
        assert server.process.wait(timeout=60) == 0


@pytest.mark.serial
def test_overload(tmp_path: Path) -> None:
    """Three times the capacity: refusals at once, memory flat, soon as before; ``benchmarks/cpu/serving.py`` for 60 s.

    The engine is the bottleneck: with one of a millisecond it would be the clients on the same cores.
    """
    build_digits(tmp_path / "digits")
    with running(tmp_path, tmp_path / "digits", "--threads", "1", "--queue", "16", "--log-level", "warning") as server:
        done = overload(server, "digits", batch=16, seconds=5)
        assert set(done["refused"]) == {"429"}, done
        assert done["answered"] > 0.3 * done["capacity_per_second"] * 5
        assert done["refused_ms"]["p50"] < done["answered_ms"]["p50"]
        assert done["memory_end_mib"] < 1.1 * done["memory_quarter_mib"] + 16
        assert done["recovery_seconds"] < 5  # 2 s on a machine of its own, by the benchmark
        assert server.stop() == 0


def test_not_ready_before_the_warm_up(bundles: Path, tmp_path: Path) -> None:
    """The ready line comes after the workers are warm, and the first request finds them so."""
    with running(tmp_path, bundles / "kep", "--threads", "1") as server:
        assert [line["event"] for line in server.log] == ["ready"]
        assert server.request("GET", "/v2/health/ready").status_code == 200
