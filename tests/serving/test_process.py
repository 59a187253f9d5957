"""A worker as the server sees it: what it says wrongly, and what happens when it cannot start."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtkp
import trtkp.serving.worker.process
from tests.serving.servers import images
from trtkp.bundle.manifest import hash_line
from trtkp.errors import JobError
from trtkp.serving.batcher import Job
from trtkp.serving.contract import Contract
from trtkp.serving.errors import ServeError, Unavailable
from trtkp.serving.worker.arena import Arena, layout
from trtkp.serving.worker.process import Instance, WorkerProcess


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def answered(contract: Contract, answer: Callable[[Arena], dict[str, Any] | None], rows: Sequence[int]) -> Any:
    """What an instance makes of a worker that says it is ready and gives ``answer``; None: it dies instead."""

    def work(link: socket.socket, outputs: Arena) -> None:
        with link, link.makefile("rwb") as lines, outputs:
            lines.write(b'{"ready": true}\n')
            lines.flush()
            lines.readline()
            if (event := answer(outputs)) is not None:
                lines.write(json.dumps(event).encode() + b"\n")
                lines.flush()

    async def ask() -> Any:
        instance = Instance(contract)
        theirs = instance.worker_socket.dup(), Arena(os.dup(instance.outputs.descriptor))
        worker = threading.Thread(target=work, args=theirs)
        worker.start()
        try:
            assert await instance.connect() == {"ready": True}
            future = asyncio.get_running_loop().create_future()
            jobs = [Job({"image": images(count)}, count, (), future) for count in rows]
            return await instance.run(jobs, 10)
        finally:
            instance.close()
            worker.join()

    return asyncio.run(ask())


def giving(rows: int) -> Callable[[Arena], dict[str, Any]]:
    """A worker whose output ``y`` has so many rows, numbered."""

    def answer(outputs: Arena) -> dict[str, Any]:
        places, size = layout([("y", np.dtype(np.float32), (rows, 5))])
        outputs.reserve(size)
        outputs.views(places)["y"][...] = np.arange(rows)[:, None]
        return {"outputs": places, "ms": 1.0}

    return answer


@pytest.fixture
def contract(bundles: Path) -> Contract:
    return Contract.of(trtkp.load(bundles / "kep"), "kep")


def test_rows_go_to_those_who_sent_them(contract: Contract) -> None:
    results, milliseconds = answered(contract, giving(3), [1, 2])
    assert [result["y"][:, 0].tolist() for result in results] == [[0], [1, 2]]
    assert milliseconds == 1.0


@pytest.mark.parametrize("rows", [2, 4])
def test_other_rows_than_asked_are_an_error(contract: Contract, rows: int) -> None:
    with pytest.raises(ServeError, match=f"the engine returned {rows} rows of y for a batch of 3"):
        answered(contract, giving(rows), [1, 2])


def test_refusals_and_death_while_computing(contract: Contract) -> None:
    with pytest.raises(ServeError, match="out of memory"):
        answered(contract, lambda _: {"error": "out of memory"}, [1])
    with pytest.raises(Unavailable, match="died while it computed"):
        answered(contract, lambda _: None, [1])


def started(path: Path) -> None:
    async def start() -> None:
        bundle = trtkp.load(path)
        (path / "engine.onnx").write_bytes(bytes((path / "engine.onnx").stat().st_size))  # after the server's own look
        await WorkerProcess.start(bundle, Contract.of(bundle, "kep"), 2, 1)

    asyncio.run(start())


@pytest.fixture
def bundle(bundles: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundles / "kep", tmp_path / "kep")


def test_a_start_that_the_worker_refuses(bundle: Path) -> None:
    before = open_files()
    with pytest.raises(JobError, match=r"engine\.onnx.*: was changed since it was built") as caught:
        started(bundle)
    assert Path(str(caught.value.file)).name == "engine.onnx"
    assert open_files() <= before


def test_a_worker_that_ends_before_it_is_ready(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr(
        trtkp.serving.worker.process, "child_command", lambda _: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    with pytest.raises(JobError, match="kep: the worker ended with status 3 before it was ready"):
        started(bundle)
    assert open_files() <= before


@pytest.mark.parametrize("call", ["socket.socketpair", "subprocess.Popen"])
def test_nothing_left_to_start_a_worker_with(bundle: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Out of descriptors or processes: said, to be tried again, and nothing stays open."""
    calls = iter([socket.socketpair])

    def second_fails(*arguments: Any, **options: Any) -> Any:
        take = next(calls, None)
        if "Popen" in call or take is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return take(*arguments, **options)

    before = open_files()

    async def start() -> None:
        loaded = trtkp.load(bundle)
        contract = Contract.of(loaded, "kep")
        with monkeypatch.context() as patch:
            patch.setattr(f"trtkp.serving.worker.process.{call}", second_fails)
            await WorkerProcess.start(loaded, contract, 2, 1)

    with pytest.raises(JobError, match=r"cannot start a worker \(Too many open files"):
        asyncio.run(start())
    assert open_files() <= before


def test_garbled_answers_end_the_worker(bundles: Path) -> None:
    """An engine may write over the memory of its worker, whose messages then make no sense."""
    contract = Contract.of(trtkp.load(bundles / "kep"), "kep")
    events: list[dict[str, Any]] = [
        {},
        {"outputs": 3},
        {"outputs": [["y", "float32", [2, 5], 1 << 40]], "ms": 1.0},
        {"outputs": [["y"]]},
    ]
    while events:
        with pytest.raises(Unavailable, match="the worker died"):
            answered(contract, lambda _: events.pop(), [2])


def test_arena_cannot_shrink() -> None:
    """Reading behind the end of shared memory that the worker has cut off would kill the server."""
    with Arena.new() as arena:
        arena.reserve(8192)
        if not hasattr(os, "memfd_create"):
            pytest.skip("memory without a file cannot be sealed on this system")
        with pytest.raises(PermissionError):
            os.ftruncate(arena.descriptor, 4096)
        arena.reserve(16384)


def test_engine_without_an_output(bundles: Path, tmp_path: Path) -> None:
    """The engine is asked for what the manifest promises before the model is ready."""
    changes: list[tuple[dict[str, Any], str]] = [
        ({"name": "z"}, "the engine has no output z, only y"),
        ({"dtype": "float16"}, "output y of the engine is float32"),
        ({"shape": ["N", 6]}, "output y of the engine is float32"),
    ]
    for number, (change, words) in enumerate(changes):
        bundle = shutil.copytree(bundles / "kep", tmp_path / str(number))
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["outputs"][0] |= change
        text = json.dumps(manifest).encode()
        (bundle / "manifest.json").write_bytes(text)
        (bundle / "manifest.sha256").write_bytes(hash_line(text))
        with pytest.raises(JobError, match=words):
            start(bundle)


def start(bundle: Path, instances: int = 1) -> None:
    """Start a worker and stop it."""

    async def once() -> None:
        opened = trtkp.load(bundle)
        worker = await WorkerProcess.start(opened, Contract.of(opened, "kep"), instances, 1)
        await worker.stop()

    asyncio.run(once())


@pytest.mark.parametrize("instances", [1, 3])
def test_descriptors_of_a_worker(bundles: Path, instances: int) -> None:
    """Exactly so many descriptors suffice; without them the start fails in a line, and none is lost in 20 attempts."""
    code = f"""
import asyncio, os, resource
from pathlib import Path
import trtkp
from trtkp.bundle.manifest import hash_line
from trtkp.errors import JobError
from trtkp.serving.contract import Contract
from trtkp.serving.worker.process import WorkerProcess, descriptors

async def main():
    bundle = trtkp.load({str(bundles / "kep")!r})
    contract = Contract.of(bundle, "kep")
    await (await WorkerProcess.start(bundle, contract, {instances}, 1)).stop()  # imports and caches
    used = len(os.listdir("/proc/self/fd")) - 1
    top = max(int(name) for name in os.listdir("/proc/self/fd"))
    assert top < used + 1, (top, used)  # no gaps, so a limit on numbers is one on their count
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(descriptors({instances})):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + number, hard))
        try:
            await WorkerProcess.start(bundle, contract, {instances}, 1)
        except JobError as error:
            assert "cannot start a worker" in str(error), error
        else:
            raise AssertionError(f"{{number}} were enough")
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + descriptors({instances}), hard))
    await (await WorkerProcess.start(bundle, contract, {instances}, 1)).stop()
    await asyncio.sleep(0.5)  # the thread that reads the worker's words closes its pipe
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert len(os.listdir("/proc/self/fd")) - 1 == used

asyncio.run(main())
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
