"""The server itself (event loop, sockets, start and shutdown), and the load generator that measures a server."""
