"""How long a client may take, by a clock that is played, and a server whose wall clock jumps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.serving.raw_http2 import framed
from tests.serving.servers import batch_input, images, running
from trtkp.serving.admission.deadlines import Deadlines
from trtkp.serving.admission.memory import Memory
from trtkp.serving.protocol.http2.call import Answer, Call, Method
from trtkp.serving.protocol.http2.messages import Buffer

LIMITS = Deadlines(step_s=2.0)


def new_call(*, stream: bool, end: float | None = None) -> Call:
    async def answer(_data: Buffer, _call: Call) -> Answer:
        return []

    method = Method(lambda: 1 << 30, stream=answer) if stream else Method(lambda: 1 << 30, unary=answer)
    head: Any = SimpleNamespace(end=end, path="/s/M", encoding="identity")
    connection: Any = SimpleNamespace()
    return Call(connection, 1, head, method, Memory(1 << 30).account("client"))


def reason(call: Call, seconds: float) -> str | None:
    late = call.late(LIMITS, monotonic() + seconds)
    return None if late is None else late.message


def test_idle_stream() -> None:
    """It may wait for its next message as long as a connection for its next request, and no longer."""
    call = new_call(stream=True)
    assert reason(call, 70) is None
    assert reason(call, 80) == "no message for 75 s"
    call.busy = True  # the server computes
    assert reason(call, 80) is None


def test_message_that_stops() -> None:
    call = new_call(stream=True)
    assert not list(call.reader.feed(memoryview(framed(bytes(100))[:50])))
    assert reason(call, 1) is None
    assert reason(call, 3) == "the message did not arrive in time"


def test_message_that_drips() -> None:
    """Each piece comes in time, but the whole takes longer than its size allows: 2 s, and 1 s for every 16 KiB."""
    call = new_call(stream=False)
    assert not list(call.reader.feed(memoryview(framed(bytes(1 << 16))[:50])))
    call.moved = monotonic() + 1000
    assert reason(call, 5) is None
    assert reason(call, 7) == "the message did not arrive in time"


def test_clients_own_deadline() -> None:
    call = new_call(stream=True, end=monotonic() + 10)
    assert reason(call, 9) is None
    assert reason(call, 11) == "the client's deadline has passed"


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_wall_clock_that_jumps(
    bundles: Path, tmp_path: Path, answers: Callable[[np.ndarray], np.ndarray], jump: float
) -> None:
    """Twelve days to and fro at every look at the clock, in the server and its worker: nothing times out."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import itertools, time\n"
        f"real, jumps = time.time, itertools.cycle([0.0, {jump}])\n"
        f"time.time = lambda: real() + next(jumps)\n"
    )
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    with running(tmp_path, bundles / "kep", "--threads", "1", "--timeout", "20", PYTHONPATH=path) as server:
        expected = answers(images(4))
        for module, connect in ((triton_http, server.http_client), (triton_grpc, server.grpc_client)):
            with connect() as client:
                for _ in range(20):
                    found = client.infer("kep", batch_input(module, images(4))).as_numpy("y")
                    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        times = {line["time"][:10] for line in server.log}
        assert len(times) > 1  # the clock of the log did jump
        assert {line["status"] for line in server.log if line["event"] == "request"} == {200}
