"""The options of a server: addresses, batching, limits, credentials."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from trtkp.engine.options import DeviceNumber
from trtkp.errors import InputError
from trtkp.settings import Setting, check

__all__ = ["TOKEN_VARIABLE", "Clients", "Rate", "ServeOptions"]

TOKEN_VARIABLE = "TRTKP_TOKEN"  # noqa: S105 - the variable's name


#: Of a load on a running server.
Clients: TypeAlias = Annotated[
    int, Setting("Clients that send a request as soon as the last one is answered.", ge=1, group="Load")
]
Rate: TypeAlias = Annotated[
    float | None,
    Setting("Requests a second, sent on time whatever the server does; instead of --clients.", gt=0, group="Load"),
]

_LISTEN, _BATCHING, _LIMITS, _SECURITY = "Listen", "Batching", "Limits", "Security"


@dataclass(frozen=True)
class ServeOptions:
    """How to serve bundles. ``timeout_s`` also kills a worker whose run of an engine takes longer.

    Raises:
        InputError: a value has another type or is out of range, a file is missing, or one of the TLS files is missing.
    """

    host: Annotated[str, Setting("Address to listen on.", group=_LISTEN, essential=True)] = "127.0.0.1"
    port: Annotated[
        int, Setting("Port of HTTP; 0 for any free one.", ge=0, le=65535, group=_LISTEN, essential=True)
    ] = 8000
    grpc_port: Annotated[
        int | None,
        Setting(
            "Port of gRPC; 0 for any free one, -1 for no gRPC.",
            ge=0,
            le=65535,
            none="-1",
            group=_LISTEN,
            essential=True,
        ),
    ] = 8001
    max_batch: Annotated[
        int | None,
        Setting("Largest batch.", ge=1, default="the largest that the bundle takes", group=_BATCHING, essential=True),
    ] = None
    max_delay_ms: Annotated[
        float,
        Setting(
            "Milliseconds that a request may wait for others while an instance is free.",
            ge=0,
            flag="--max-delay",
            group=_BATCHING,
        ),
    ] = 1.0
    instances: Annotated[
        int, Setting("Execution contexts of each model; each runs one batch at a time.", ge=1, group=_BATCHING)
    ] = 1
    threads: Annotated[
        int | None,
        Setting(
            "CPU threads of an instance.",
            ge=1,
            default="the physical cores, divided among the instances",
            group=_BATCHING,
        ),
    ] = None
    device: DeviceNumber = 0
    queue: Annotated[int, Setting("Requests of a model that may wait; more are refused.", ge=1, group=_LIMITS)] = 256
    body_bytes: Annotated[
        int, Setting("Largest request, in MiB.", ge=1, flag="--max-body", unit=1 << 20, group=_LIMITS)
    ] = 64 << 20
    pending_bytes: Annotated[
        int,
        Setting(
            "All requests and answers held at once, in MiB; more are refused.",
            ge=1,
            flag="--max-pending",
            unit=1 << 20,
            group=_LIMITS,
        ),
    ] = 1 << 30
    connections: Annotated[
        int,
        Setting("Connections open at once; idle ones are closed for new ones.", ge=1, group=_LIMITS),
    ] = 1024
    timeout_s: Annotated[
        float, Setting("Seconds until a request is given up.", gt=0, flag="--timeout", group=_LIMITS)
    ] = 30.0
    grace_s: Annotated[
        float,
        Setting("Seconds that a shutdown waits for the answers to open requests.", ge=0, flag="--grace", group=_LIMITS),
    ] = 30.0
    token_file: Annotated[
        Path | None,
        Setting("File with the bearer token.", default=f"${TOKEN_VARIABLE}", group=_SECURITY, essential=True),
    ] = None
    tls_cert: Annotated[
        Path | None,
        Setting("PEM certificate chain; with --tls-key, HTTP and gRPC use TLS.", group=_SECURITY, essential=True),
    ] = None
    tls_key: Annotated[Path | None, Setting("PEM private key.", group=_SECURITY, essential=True)] = None
    log_level: Annotated[
        str, Setting("info logs every request, warning only what went wrong.", choices=("info", "warning"))
    ] = "info"

    def __post_init__(self) -> None:
        check(self)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs a certificate and its key", remedy="give both --tls-cert and --tls-key")
        for path in (self.tls_cert, self.tls_key, self.token_file):
            if path is not None and not path.is_file():
                raise InputError("no such file", file=path)

    def token(self) -> str | None:
        """Return the bearer token that clients must send; None if none is required.

        Raises:
            InputError: the token file is empty or cannot be read.
        """
        if self.token_file is None:
            return os.environ.get(TOKEN_VARIABLE) or None
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError):
            raise InputError("cannot be read as an ASCII token", file=self.token_file) from None
        if not token:
            raise InputError("the token file is empty", file=self.token_file)
        return token
