"""Put a running server under load, and measure latency percentiles, throughput and errors.

*Closed loop*: each client sends its next request when its last one was answered. This measures capacity.

*Open loop*: requests are sent at the times of a Poisson process, whether or not the server keeps up. Latency counts
from the scheduled time, not from the time of sending. A stall of the server is thus charged to every request that was
due meanwhile; leaving them out is known as coordinated omission (G. Tene, "How NOT to Measure Latency").
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from pydantic_core import to_json

from trtkp.errors import InputError, JobError
from trtkp.serving.datatypes import DATATYPES
from trtkp.serving.options import Clients, Rate
from trtkp.serving.protocol.wire import HEADER_LENGTH

__all__ = ["LoadResult", "measure_load"]

#: Sends one request and returns None, or the error in one word, such as the HTTP status.
_Send: TypeAlias = Callable[[], Awaitable[str | None]]

_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class LoadResult:
    """What a server achieved under load.

    Attributes:
        url: URL of the server.
        model: name of the model.
        loop: ``closed`` or ``open``.
        clients: number of clients of the closed loop; None for an open loop.
        rate: requests per second that the open loop scheduled; None for a closed loop.
        batch: rows per request.
        seconds: time from the first request to the last answer.
        requests: number of requests answered without error.
        errors: number of errors by kind.
        latency_ms: percentiles (``p50`` ...), ``mean`` and ``max`` of the answered requests, in milliseconds.
        error_ms: the same of the refused and failed requests; empty if there were none.
        lag_ms: 99th percentile of the delay with which this program itself sent requests. If it is as large as the
            latency, this program was the bottleneck and not the server.
    """

    url: str
    model: str
    loop: str
    clients: int | None
    rate: float | None
    batch: int
    seconds: float
    requests: int
    errors: dict[str, int]
    latency_ms: dict[str, float]
    error_ms: dict[str, float]
    lag_ms: float

    @property
    def throughput(self) -> float:
        """Answered requests per second."""
        return self.requests / self.seconds

    @property
    def rows_per_second(self) -> float:
        """Answered rows per second."""
        return self.throughput * self.batch


@dataclass(frozen=True)
class _Target:
    """The server and model under test, and the requests to send."""

    url: str
    model: str
    batch: int
    timeout_s: float
    token: str | None
    rng: np.random.Generator


@dataclass
class _Record:
    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)

    async def one(self, send: _Send, scheduled: float) -> None:
        self.lags.append(max(0.0, perf_counter() - scheduled))
        error = await send()
        seconds = perf_counter() - scheduled
        if error is None:
            self.latencies.append(seconds)
        else:
            self.refusals.append(seconds)
            self.errors[error] += 1


def measure_load(
    url: str,
    model: str,
    *,
    batch: int = 1,
    clients: Clients = 8,
    rate: Rate = None,
    seconds: float = 10.0,
    timeout_s: float = 30.0,
    token: str | None = None,
    seed: int = 0,
) -> LoadResult:
    """Send random inputs to a server for some seconds, and measure its answers.

    Args:
        url: URL of any server of the Open Inference Protocol: ``http://``, ``https://`` or ``grpc://``.
        model: name of the model on that server.
        batch: rows per request.
        clients: number of clients of a closed loop.
        rate: requests per second of an open loop; None for a closed loop.
        seconds: how long to send requests.
        timeout_s: seconds after which a request is given up and counted as an error.
        token: bearer token.
        seed: seed of the inputs and of the open loop's schedule.

    Raises:
        InputError: an option is out of range, the model does not exist, or its inputs cannot be generated.
        JobError: the server cannot be reached, or does not answer the first requests.
    """
    if batch < 1 or clients < 1 or not 0 < seconds < math.inf or not 0 < timeout_s < math.inf:
        raise InputError(f"--batch {batch}, --clients {clients}, --seconds {seconds}: must be more than 0")
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"--rate {rate}: must be more than 0")
    target = _Target(url, model, batch, timeout_s, token, np.random.default_rng(seed))
    work = _measure(target, clients, rate, seconds)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def _measure(target: _Target, clients: int, rate: float | None, seconds: float) -> LoadResult:
    async with AsyncExitStack() as stack:
        opener = _open_grpc if target.url.startswith("grpc://") else _open_http
        send = await opener(stack, target)
        for _ in range(3):  # opens connections, and shows whether the server answers at all
            if (error := await send()) is not None:
                raise JobError(f"{target.url}: model {target.model} answers {error}")
        record = _Record()
        start = perf_counter()
        if rate is None:
            await _closed(record, send, clients, start + seconds)
        else:
            gaps = target.rng.exponential(1 / rate, math.ceil(rate * seconds))
            await _open(record, send, start + np.cumsum(gaps))
        elapsed = perf_counter() - start
    return LoadResult(
        url=target.url,
        model=target.model,
        loop="closed" if rate is None else "open",
        clients=clients if rate is None else None,
        rate=rate,
        batch=target.batch,
        seconds=elapsed,
        requests=len(record.latencies),
        errors=dict(record.errors),
        latency_ms=_summary(record.latencies),
        error_ms=_summary(record.refusals),
        lag_ms=float(np.percentile(record.lags, 99)) * 1e3 if record.lags else 0.0,
    )


async def _closed(record: _Record, send: _Send, clients: int, end: float) -> None:
    async def client() -> None:
        while (now := perf_counter()) < end:
            await record.one(send, now)

    await asyncio.gather(*(client() for _ in range(clients)))


async def _open(record: _Record, send: _Send, schedule: np.ndarray) -> None:
    async with asyncio.TaskGroup() as group:
        for moment in schedule.tolist():
            wait = moment - perf_counter()
            # Sleep even when late: the event loop must get a chance to receive answers.
            await asyncio.sleep(max(0.0, wait))
            group.create_task(record.one(send, moment))


def _summary(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    values = np.asarray(seconds) * 1e3
    points = {f"p{point:g}": float(np.percentile(values, point)) for point in _PERCENTILES}
    return {**points, "mean": float(values.mean()), "max": float(values.max())}


async def _open_http(stack: AsyncExitStack, target: _Target) -> _Send:
    if urlsplit(target.url).scheme not in ("http", "https"):
        raise InputError(f"--load {target.url}: must begin with http://, https:// or grpc://")
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # no limit: aiohttp's 100 would cap an open loop
            timeout=aiohttp.ClientTimeout(target.timeout_s),
            headers={"Authorization": f"Bearer {target.token}"} if target.token else None,
        )
    )
    path = f"{target.url.rstrip('/')}/v2/models/{target.model}"
    try:
        async with session.get(path) as answer:
            metadata = await answer.json(content_type=None)
            if answer.status != 200:
                raise InputError(f"{path}: status {answer.status}, {str(metadata)[:200]}")
            tensors = [(str(e["name"]), str(e["datatype"]), list(map(int, e["shape"]))) for e in metadata["inputs"]]
    except (LookupError, TypeError):
        raise InputError(f"{path}: the answer is not that of an Open Inference Protocol server") from None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise JobError(f"{path}: no answer ({str(error) or type(error).__name__})") from None
    inputs, tail = [], []
    for name, datatype, values in _inputs(tensors, target):
        tail.append(values.tobytes())
        size = {"binary_data_size": len(tail[-1])}
        inputs.append({"name": name, "datatype": datatype, "shape": list(values.shape), "parameters": size})
    head = to_json({"inputs": inputs, "parameters": {"binary_data_output": True}})
    body, headers = b"".join([head, *tail]), {HEADER_LENGTH: str(len(head))}

    async def send() -> str | None:
        try:
            async with session.post(f"{path}/infer", data=body, headers=headers) as answer:
                await answer.read()
                return None if answer.status == 200 else str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__

    return send


async def _open_grpc(stack: AsyncExitStack, target: _Target) -> _Send:
    import grpc
    from tritonclient.grpc import service_pb2 as pb

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(urlsplit(target.url).netloc, options=options))
    headers = (("authorization", f"Bearer {target.token}"),) if target.token else ()

    def method(name: str) -> Any:
        return channel.unary_unary(f"/inference.GRPCInferenceService/{name}")

    try:
        request = pb.ModelMetadataRequest(name=target.model).SerializeToString()
        metadata = pb.ModelMetadataResponse.FromString(
            await method("ModelMetadata")(request, timeout=target.timeout_s, metadata=headers)
        )
    except grpc.aio.AioRpcError as error:
        kind = InputError if error.code() is grpc.StatusCode.NOT_FOUND else JobError
        raise kind(f"{target.url}: {error.details()}") from None
    message = pb.ModelInferRequest(model_name=target.model)
    tensors = [(entry.name, entry.datatype, list(entry.shape)) for entry in metadata.inputs]
    for name, datatype, values in _inputs(tensors, target):
        message.inputs.add(name=name, datatype=datatype, shape=values.shape)
        message.raw_input_contents.append(values.tobytes())
    body, infer = message.SerializeToString(), method("ModelInfer")

    async def send() -> str | None:
        try:
            await infer(body, timeout=target.timeout_s, metadata=headers)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return None

    return send


def _inputs(tensors: list[tuple[str, str, list[int]]], target: _Target) -> list[tuple[str, str, np.ndarray]]:
    """Make random inputs: standard normal, or zeros and ones for integers. A dynamic first dimension is the batch."""
    made = []
    for name, datatype, shape in tensors:
        sizes = [int(size) for size in shape]
        if sizes and sizes[0] == -1:
            sizes[0] = target.batch
        if datatype not in DATATYPES or min(sizes, default=0) < 0:
            raise InputError(f"input {name} {datatype}{shape}: only the batch may be dynamic for a load test")
        dtype = DATATYPES[datatype]
        floating = datatype.startswith(("FP", "BF"))
        values = target.rng.standard_normal(sizes) if floating else target.rng.integers(0, 2, sizes)
        made.append((name, datatype, values.astype(dtype)))
    return made
