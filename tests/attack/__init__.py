"""Hostile and oversized files: each ends in one line, in bounded time and memory."""
