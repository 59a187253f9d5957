"""The Ray Serve application on a local cluster of two nodes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import tritonclient.http as triton_http

from tests.serving.servers import batch_input, images
from trtkp.errors import InputError

ray = pytest.importorskip("ray", reason="package ray is not installed")


@pytest.fixture
def port() -> int:
    """A port that nobody listens on; Ray cannot be told to choose one itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, port: int) -> Iterator[None]:
    from ray import serve
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    root = str(Path(__file__).parents[2])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 << 20})
    cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
    ray.init(address=cluster.address, runtime_env={"env_vars": {"PYTHONPATH": root}}, log_to_driver=False)
    assert len(ray.nodes()) == 2
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.serial
def test_replica_killed_under_load(
    cluster: None, port: int, bundles: Path, answers: Callable[[np.ndarray], np.ndarray]
) -> None:
    from ray import serve

    from trtkp.serving.export.ray import make_application
    from trtkp.serving.options import ServeOptions

    options = ServeOptions(threads=1, log_level="warning")
    app = make_application([bundles / "kep"], options=options, min_replicas=2, max_replicas=3, target_requests=2)
    serve.run(app, name="default", route_prefix="/")
    expected = answers(images(4))
    outcomes: list[str] = []
    stop = threading.Event()

    def client() -> None:
        with triton_http.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=20) as connection:
            while not stop.is_set():
                try:
                    result = connection.infer("kep", batch_input(triton_http, images(4)))
                    good = np.allclose(result.as_numpy("y"), expected, rtol=1e-4, atol=1e-5)
                    outcomes.append("ok" if good else "wrong")
                except Exception as error:
                    outcomes.append(f"{type(error).__name__} {error}"[:100])
                    time.sleep(0.05)

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
        thread.start()
    _until(lambda: outcomes.count("ok") > 50)
    before = _replicas()
    assert len(before) >= 2
    os.kill(before[0], signal.SIGKILL)
    killed = len(outcomes)
    _until(lambda: outcomes[killed:].count("ok") > 100)
    _until(lambda: len([pid for pid in _replicas() if pid not in before]) >= 1)  # another one came
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "a client hangs"
    assert "wrong" not in outcomes
    failures = Counter(outcome for outcome in outcomes if outcome != "ok")
    assert sum(failures.values()) <= 12, failures  # those on their way to it, at most
    assert outcomes[-1] == "ok"
    metadata = requests.get(f"http://127.0.0.1:{port}/v2/models/kep", timeout=10).json()
    assert metadata["name"] == "kep"


def test_arguments(bundles: Path) -> None:
    from trtkp.serving.export.ray import application

    with pytest.raises(InputError, match="no argument 'replicas'; use bundles, min_replicas"):
        application({"bundles": str(bundles / "kep"), "replicas": "2"})
    with pytest.raises(InputError, match="no bundle to serve"):
        application({})
    with pytest.raises(InputError, match="min_replicas 3, max_replicas 2: not a range"):
        application({"bundles": str(bundles / "kep"), "min_replicas": "3", "max_replicas": "2"})


def _replicas() -> list[int]:
    """Processes of the application's replicas."""
    return [
        process.pid
        for process in psutil.process_iter(["name", "cmdline"])
        if any("ServeReplica:default:trtkp" in part for part in process.info["cmdline"] or ())
    ]


def _until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it never came"
        time.sleep(0.05)
