"""Servers in processes of their own, and raw requests to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

__all__ = ["Server", "batch_input", "images", "running"]


class Server:
    """A running ``trtkp serve`` and what it said."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log_file = log
        assert process.stdout is not None
        text = ""
        for line in process.stdout:  # the one JSON document, over several lines
            text += line
            if line == "}\n":
                break
        assert text, log.read_text()
        self.addresses: dict[str, Any] = json.loads(text)
        self.url: str = self.addresses["http"]
        self.host = self.url.split("//")[1]
        self.session = requests.Session()
        self.grpc: str = self.addresses["grpc"]

    @property
    def log(self) -> list[dict[str, Any]]:
        time.sleep(0.1)  # a thread of the server writes it, after the answers
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def http_client(self, **options: Any) -> triton_http.InferenceServerClient:
        return triton_http.InferenceServerClient(self.host, **options)

    def grpc_client(self, **options: Any) -> triton_grpc.InferenceServerClient:
        return triton_grpc.InferenceServerClient(self.grpc, **options)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, self.url + path, timeout=30, **options)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def running(folder: Path, *arguments: str | Path, python: str = sys.executable, **environment: str) -> Iterator[Server]:
    """``trtkp serve`` on free ports, in ``folder``; killed at the end if it still runs."""
    command = [python, "-m", "trtkp", "serve", "--port", "0", "--grpc-port", "0", "--json"]
    log = folder / "server.log"
    root = str(Path(__file__).parents[2])
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": root, **environment},
        )
    try:
        yield Server(process, log)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def images(rows: int, seed: int = 0) -> np.ndarray:
    """Inputs of the classifier of `tests.models`."""
    return np.random.default_rng(seed).standard_normal((rows, 3, 8, 8), np.float32)


def batch_input(module: Any, array: np.ndarray, **options: Any) -> list[Any]:
    """The input ``image`` for a client of either module."""
    tensor = module.InferInput("image", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, **options)
    return [tensor]
