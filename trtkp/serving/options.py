"""The options of a server: addresses, batching, limits, credentials."""

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
        host: address to listen on; the default accepts connections from this machine only.
        port: HTTP port; 0 for any free one.
        grpc_port: gRPC port; 0 for any free one, None for no gRPC.
        max_batch: largest batch; None for the profile's.
        max_delay_ms: milliseconds that a request may wait for others to share its run while an instance is free.
        instances: execution contexts per model; each computes one batch at a time.
        threads: CPU threads per instance; None to divide the physical cores among the instances.
        queue: number of requests of a model that may wait; further ones are refused immediately.
        body_bytes: largest size of one request.
        pending_bytes: total size of all request bodies held at once; further ones are refused immediately.
        connections: number of HTTP connections, and of gRPC calls, at once; further ones are refused immediately.
        timeout_s: time limit in seconds for receiving a request's head, receiving its body, and answering it; and for
            one run of an engine, after which the worker is killed.
        grace_s: seconds that a shutdown waits for requests in progress.
        token_file: file with the bearer token. Without it, the environment variable TRTKP_TOKEN; without either, no
            token is required.
        tls_cert: PEM certificate chain; with `tls_key`, HTTP and gRPC use TLS.
        tls_key: PEM private key.
        log_level: ``info`` logs every request, ``warning`` only problems.

    Raises:
        InputError: a value is out of range, a file is missing, or only one of the TLS files is given.
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
            raise InputError("--timeout 0: must be more than 0")
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
