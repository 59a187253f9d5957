"""Many clients with requests of mixed sizes: none lost, none mixed up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.serve.servers import Server, batch_input, images, running

Answers = Callable[[np.ndarray], np.ndarray]

CLIENTS = 16
SIZES = (1, 2, 3, 5, 8, 13, 32, 64)


def traffic(server: Server, answers: Answers, requests: int) -> None:
    """So many requests from 16 clients, half over gRPC; every answer is held against the engine's own."""
    pool = images(256)
    expected = answers(pool)
    wrong: list[str] = []
    done: list[int] = []

    def client(number: int) -> None:
        rng = np.random.default_rng(number)
        module: Any = triton_grpc if number % 2 else triton_http
        with server.grpc_client() if number % 2 else server.http_client() as connection:
            for index in range(requests // CLIENTS):
                rows = rng.integers(0, len(pool), rng.choice(SIZES))
                name = f"{number}-{index}"
                try:
                    result = connection.infer("kep", batch_input(module, pool[rows]), request_id=name)
                except Exception as error:
                    wrong.append(f"{name}: {error}")
                    continue
                response = result.get_response()
                got = response["id"] if isinstance(response, dict) else response.id
                if got != name or not np.allclose(result.as_numpy("y"), expected[rows], rtol=1e-4, atol=1e-5):
                    wrong.append(f"{name}: another request's answer ({got})")
                done.append(len(rows))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(done) == requests // CLIENTS * CLIENTS


def batches(server: Server) -> tuple[float, float]:
    """Rows and runs so far."""
    [stats] = server.request("GET", "/v2/models/kep/stats").json()["model_stats"]
    return stats["inference_count"], stats["execution_count"]


@pytest.mark.parametrize(
    "requests", [pytest.param(1600, id="share"), pytest.param(10_000, id="all", marks=pytest.mark.slow)]
)
def test_mixed_sizes_from_16_clients(bundles: Path, tmp_path: Path, answers: Answers, requests: int) -> None:
    options = ("--threads", "1", "--instances", "2", "--log-level", "warning")
    with running(tmp_path, bundles / "kep", *options) as server:
        traffic(server, answers, requests)
        rows, runs = batches(server)
        assert rows > requests * 5
        assert runs < requests  # some of them shared a run
        assert server.stop() == 0
        assert server.log == []
