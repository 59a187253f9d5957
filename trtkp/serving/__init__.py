"""Serving: bundles behind the Open Inference Protocol (KServe v2) over HTTP and gRPC.

A request is checked against the model's contract, waits in its batcher, and is computed by its worker process; tensors
travel between them in shared memory. `trtkp.serving.serve` holds what ``trtkp serve`` calls.
"""
