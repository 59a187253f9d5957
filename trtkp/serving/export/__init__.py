"""Served models for other servers: Triton repositories, KServe resources, Ray Serve."""
