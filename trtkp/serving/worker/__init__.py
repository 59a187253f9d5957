"""The process that computes a served model, and the memory that it shares with the server."""
