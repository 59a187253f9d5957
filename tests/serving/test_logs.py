"""The log never holds up the server, whatever its reader does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.serving.servers import running
from tests.serving.test_survival import until
from trtkp.serving import logs


@contextlib.contextmanager
def logging_to_pipe(level: str) -> Iterator[int]:
    """Log to a pipe as standard error and give its reading end; logging is as before at the end."""
    reader, writer = os.pipe()
    root, disabled, stderr = logging.root.handlers[:], logging.root.manager.disable, sys.stderr
    logging.root.handlers[:] = []
    try:
        with os.fdopen(writer, "w") as sys.stderr:
            logs.start_logging(level)
        yield reader
    finally:
        sys.stderr = stderr
        os.close(reader)
        logs.stop_logging()
        logging.root.handlers[:] = root
        logging.captureWarnings(capture=False)
        logging.disable(disabled)


def test_stalled_reader() -> None:
    """Lines beyond the queue are counted, and the count is in the log when the reader goes on."""
    with logging_to_pipe("info") as stderr:
        for number in range(20_000):  # a log that waits for its reader never comes to the end
            logs.log("request", request_id="x" * 100, number=number)
        text = b""
        while b"after" not in text:
            text += os.read(stderr, 1 << 16)
            if b"log lines lost" in text:
                logs.log("after")
            else:
                logs.log("between")
    lines = [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]
    numbers = [line["number"] for line in lines if line["event"] == "request"]
    assert numbers == list(range(len(numbers)))
    lost = next(line["count"] for line in lines if line["event"] == "log lines lost")
    assert 0 <= lost - (20_000 - len(numbers)) < 100  # some of the lines in between, too


def test_end_does_not_wait() -> None:
    with logging_to_pipe("info"):
        for _ in range(10_000):
            logs.log("request", request_id="x" * 100)
        start = time.monotonic()
        logs.stop_logging()
        assert time.monotonic() - start < 10  # 2 s by design


def test_libraries_and_long_lines() -> None:
    with logging_to_pipe("warning") as stderr:
        logs.log("not written")
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("asyncio").exception("Task failed")
        logs.log("long", level=logging.WARNING, text="é" * 100_000, status=3)
        logs.stop_logging()
        lines = [json.loads(line) for line in os.read(stderr, 1 << 16).splitlines()]
    assert [(line["event"], line.get("logger")) for line in lines] == [
        ("Invalid HTTP request received.", "uvicorn.error"),
        ("Task failed", "asyncio"),
        ("long", None),
    ]
    assert lines[1]["error"].endswith("ValueError: why\n")
    assert (len(lines[2]["text"]), lines[2]["status"]) == (1000, 3)


def test_nobody_reads(bundles: Path, tmp_path: Path) -> None:
    """Standard output and standard error are full pipes, which nobody reads: the server serves and ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [os.pipe() for _ in range(2)]
    for _, writer in pipes:
        fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, b"x" * 4096):
                pass
        fcntl.fcntl(writer, fcntl.F_SETFL, 0)
    command = [sys.executable, "-m", "trtkp", "serve", str(bundles / "kep"), "--port", str(port), "--grpc-port", "-1"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [*command, "--threads", "1"],
        stdout=pipes[0][1],
        stderr=pipes[1][1],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return requests.get(url + "/v2/health/ready", timeout=5).status_code == 200
        except requests.exceptions.ConnectionError:
            return False

    try:
        until(ready)
        with requests.Session() as session:
            for _ in range(100):
                assert session.post(url + "/v2/models/kep/infer", data=b"{}", timeout=5).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        for end in (end for pipe in pipes for end in pipe):
            os.close(end)


def test_workers_words_are_in_the_log(bundles: Path, tmp_path: Path) -> None:
    """What a worker writes to standard error comes as lines of the log; here Python's list of imported modules."""
    with running(tmp_path, bundles / "kep", "--threads", "1", PYTHONVERBOSE="1") as server:
        until(lambda: any(line["event"] == "worker" for line in server.log))
        said = [line for line in server.log if line["event"] == "worker"]
        assert {line["pid"] for line in said} == {worker.pid for worker in server.workers}
        assert any("import" in line["text"] for line in said)
