"""gRPC on HTTP/2: frames and windows by the library h2, messages and calls by this package."""
