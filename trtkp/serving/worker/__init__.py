"""The process that computes a served model, and the shared memory it shares with the server."""
