"""The running server: its event loop and sockets, and the load generator that measures it."""
