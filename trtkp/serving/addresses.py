"""Where a server listens and what it serves; light to import."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Addresses"]


@dataclass(frozen=True)
class Addresses:
    """The addresses and models of a server that is ready.

    Attributes:
        http: URL of the HTTP server.
        grpc: host and port of the gRPC server; None without gRPC.
        models: versions of every model, by name.
    """

    http: str
    grpc: str | None
    models: dict[str, list[str]]
