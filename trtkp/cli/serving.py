"""The commands that serve a bundle, or write what others serve it by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trtkp.cli import options as opt
from trtkp.cli import show, show_serving
from trtkp.errors import InputError

__all__ = [
    "Clients",
    "Load",
    "LoadModel",
    "Rate",
    "bench_load",
    "export_kserve",
    "export_triton",
    "serve",
]

_LISTEN, _BATCHING, _LIMITS, _SECURITY, _LOAD = "Listen", "Batching", "Limits", "Security", "Load"

Load = Annotated[
    str | None,
    typer.Option("--load", help="Load a running server: http://, https:// or grpc:// URL.", rich_help_panel=_LOAD),
]
LoadModel = Annotated[str | None, typer.Option("--model", help="Name of the model there.", rich_help_panel=_LOAD)]
Clients = Annotated[
    int, typer.Option("--clients", help="Clients that send when they are answered.", rich_help_panel=_LOAD)
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        help="Requests a second, sent on time whatever the server does; instead of --clients.",
        rich_help_panel=_LOAD,
    ),
]

_Bundles = Annotated[
    list[Path], typer.Argument(help="Bundles, or directories of numbered ones (versions).", show_default=False)
]
_MaxBatch = Annotated[
    int | None,
    typer.Option("--max-batch", help="Largest batch. (default: the profile's max)", rich_help_panel=_BATCHING),
]
_MaxDelay = Annotated[
    float,
    typer.Option(
        "--max-delay",
        help="Milliseconds that a request may wait for others while an instance is free.",
        rich_help_panel=_BATCHING,
    ),
]
_Instances = Annotated[
    int, typer.Option("--instances", help="Execution contexts of each model.", rich_help_panel=_BATCHING)
]
_Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="CPU threads of an instance. (default: the physical cores, shared out)",
        rich_help_panel=_BATCHING,
    ),
]
_Queue = Annotated[
    int,
    typer.Option("--queue", help="Requests of a model that may wait; more are refused.", rich_help_panel=_LIMITS),
]
_Timeout = Annotated[
    float, typer.Option("--timeout", help="Seconds until a request is given up.", rich_help_panel=_LIMITS)
]


_PACKAGES = {
    **{name: name for name in ("aiohttp", "httptools", "prometheus_client", "starlette", "tritonclient", "uvicorn")},
    "grpc": "grpcio",
    "yaml": "pyyaml",
}


def _require_packages() -> None:
    from trtkp.machine.packages import require

    require("serving", "serve", _PACKAGES)


def serve(
    bundles: _Bundles,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.", rich_help_panel=_LISTEN)] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="HTTP; 0 for any free one.", rich_help_panel=_LISTEN)] = 8000,
    grpc_port: Annotated[
        int, typer.Option("--grpc-port", help="gRPC; 0 for any free one, -1 for no gRPC.", rich_help_panel=_LISTEN)
    ] = 8001,
    max_batch: _MaxBatch = None,
    max_delay: _MaxDelay = 1.0,
    instances: _Instances = 1,
    threads: _Threads = None,
    queue: _Queue = 256,
    max_body: Annotated[
        float, typer.Option("--max-body", help="MiB of the largest request.", rich_help_panel=_LIMITS)
    ] = 64.0,
    max_pending: Annotated[
        float, typer.Option("--max-pending", help="MiB of all requests held at once.", rich_help_panel=_LIMITS)
    ] = 1024.0,
    connections: Annotated[
        int,
        typer.Option("--connections", help="HTTP connections, and gRPC calls, open at once.", rich_help_panel=_LIMITS),
    ] = 1024,
    timeout: _Timeout = 30.0,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds a shutdown waits for answers.", rich_help_panel=_LIMITS)
    ] = 30.0,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="File with the bearer token. (default: $TRTKP_TOKEN)", rich_help_panel=_SECURITY
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="PEM certificate chain.", rich_help_panel=_SECURITY)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", help="PEM private key.", rich_help_panel=_SECURITY)
    ] = None,
    log_level: Annotated[
        str, typer.Option("--log-level", help="info logs every request; warning only what went wrong.")
    ] = "info",
    json: opt.Json = False,
) -> None:
    """Serve bundles: Open Inference Protocol (KServe v2) over HTTP and gRPC, with dynamic batching."""
    from trtkp.serving.options import ServeOptions

    settings = ServeOptions(
        host=host,
        port=port,
        grpc_port=None if grpc_port == -1 else grpc_port,
        max_batch=max_batch,
        max_delay_ms=max_delay,
        instances=instances,
        threads=threads,
        queue=queue,
        body_bytes=_mebibytes(max_body, "--max-body"),
        pending_bytes=_mebibytes(max_pending, "--max-pending"),
        connections=connections,
        timeout_s=timeout,
        grace_s=grace,
        token_file=token_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        log_level=log_level,
    )
    _require_packages()
    from trtkp.serving.server.serve import serve as serve_bundles

    serve_bundles(bundles, settings, lambda addresses: show_serving.serving(addresses, json=json))


def _mebibytes(value: float, option: str) -> int:
    if not 0 < value < 1 << 30:
        raise InputError(f"{option} {value}: must be more than 0")
    return max(1, int(value * (1 << 20)))


def bench_load(
    url: str,
    model: str | None,
    bundles: list[Path] | None,
    batch: int,
    clients: int,
    rate: float | None,
    seconds: float,
    *,
    json: bool,
) -> None:
    """Load on a running server, in a closed loop or at a rate."""
    from trtkp.serving.options import TOKEN_VARIABLE

    if bundles:
        raise InputError("--load times a running server, not bundles", remedy="name its model with --model")
    if model is None:
        raise InputError("--load needs the model's name", remedy="give --model")
    _require_packages()
    from trtkp.serving.server.load import measure_load

    with show.progress(quiet=json) as progress:
        progress("Load", 0, 1)
        result = measure_load(
            url,
            model,
            batch=batch,
            clients=clients,
            rate=rate,
            seconds=seconds,
            token=os.environ.get(TOKEN_VARIABLE),
        )
    show_serving.loaded(result, json=json)


def export_triton(
    bundles: _Bundles,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model repository.", show_default=False)],
    max_batch: _MaxBatch = None,
    max_delay: _MaxDelay = 1.0,
    instances: _Instances = 1,
    threads: _Threads = None,
    queue: _Queue = 256,
    timeout: _Timeout = 30.0,
    json: opt.Json = False,
) -> None:
    """Write a Triton model repository, and the tritonserver command that serves it."""
    from trtkp.serving.options import ServeOptions

    settings = ServeOptions(
        max_batch=max_batch,
        max_delay_ms=max_delay,
        instances=instances,
        threads=threads,
        queue=queue,
        timeout_s=timeout,
    )
    _require_packages()
    from trtkp.serving.export.triton import export_triton as export

    show_serving.exported_to_triton(export(bundles, output, settings), json=json)


def export_kserve(
    name: Annotated[str, typer.Argument(help="Of the InferenceService.", show_default=False)],
    storage: Annotated[
        str, typer.Option("--storage", help="URI of the bundle, or of the Triton repository.", show_default=False)
    ],
    image: Annotated[
        str | None,
        typer.Option(
            "--image", help="Container image that holds trtkp and its extra, serve; none: KServe's Triton runtime."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. (default: standard output)")
    ] = None,
    min_replicas: Annotated[int, typer.Option("--min-replicas", help="Fewest replicas.")] = 1,
    max_replicas: Annotated[int, typer.Option("--max-replicas", help="Most replicas.")] = 4,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs of a replica.")] = 0,
    cpu: Annotated[str, typer.Option("--cpu", help="CPUs of a replica.")] = "2",
    memory: Annotated[str, typer.Option("--memory", help="Memory of a replica.")] = "2Gi",
    json: opt.Json = False,
) -> None:
    """Write a KServe InferenceService manifest."""
    from trtkp.serving.export.kserve import inference_service, write_manifest

    manifest = inference_service(
        name,
        storage,
        image=image,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        gpus=gpus,
        cpu=cpu,
        memory=memory,
    )
    text = write_manifest(manifest, output)
    show_serving.exported_to_kserve(manifest, text, output, json=json)
