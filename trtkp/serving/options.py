"""How a server runs: addresses, batching, limits, credentials."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from trtkp.errors import InputError

__all__ = ["TOKEN_VARIABLE", "ServeOptions"]

TOKEN_VARIABLE = "TRTKP_TOKEN"  # noqa: S105 - the variable's name


@dataclass(frozen=True)
class ServeOptions:
    """Options of ``trtkp serve``.

    Attributes:
        host: address to listen on; loopback unless told.
        port: of HTTP; 0: any free one.
        grpc_port: of gRPC; 0: any free one; None: no gRPC.
        max_batch: largest batch; None: the profile's.
        max_delay_ms: how long a request may wait for others to share its run while an instance is free.
        instances: execution contexts of a model, each in use by one batch at a time.
        threads: CPU threads of an instance; None: the physical cores, shared out.
        queue: requests of a model that may wait; more are refused at once.
        body_bytes: largest request.
        pending_bytes: bytes of all request bodies held at once; more are refused at once.
        connections: HTTP connections, and gRPC calls, open at once; more are refused at once.
        timeout_s: limit of the head of a request, of its body, of its answer, and of one run of an engine: a worker
            that hangs longer is killed.
        grace_s: how long a shutdown waits for requests in flight.
        token_file: file with the bearer token; else the environment variable TRTKP_TOKEN; neither: no token.
        tls_cert: PEM certificate chain; with `tls_key`, HTTP and gRPC are TLS.
        tls_key: PEM private key.
        log_level: ``info`` logs every request; ``warning`` only what went wrong.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    max_batch: int | None = None
    max_delay_ms: float = 1.0
    instances: int = 1
    threads: int | None = None
    queue: int = 256
    body_bytes: int = 64 << 20
    pending_bytes: int = 1 << 30
    connections: int = 1024
    timeout_s: float = 30.0
    grace_s: float = 30.0
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_level: str = "info"

    def __post_init__(self) -> None:
        for name in ("max_batch", "instances", "threads", "queue", "body_bytes", "connections"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        for name in ("max_delay_ms", "timeout_s", "grace_s"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise InputError(f"--{name.rpartition('_')[0].replace('_', '-')} {value}: must be 0 or more")
        if self.timeout_s == 0:
            raise InputError("--timeout 0: must be more")
        for name in ("port", "grpc_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise InputError(f"--{name.replace('_', '-')} {value}: no such port")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs a certificate and its key", remedy="give both --tls-cert and --tls-key")
        for path in (self.tls_cert, self.tls_key, self.token_file):
            if path is not None and not path.is_file():
                raise InputError("no such file", file=path)
        if self.log_level not in ("info", "warning"):
            raise InputError(f"--log-level {self.log_level}: must be info or warning")

    def token(self) -> str | None:
        """The bearer token, if one is asked for.

        Raises:
            InputError: the file is empty or cannot be read.
        """
        if self.token_file is None:
            return os.environ.get(TOKEN_VARIABLE) or None
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError):
            raise InputError("is no readable token", file=self.token_file) from None
        if not token:
            raise InputError("holds no token", file=self.token_file)
        return token
