"""Serve bundles by the Open Inference Protocol (KServe v2), over HTTP and gRPC.

The way of a request: ``protocol`` decodes it, `contract` checks it against the model, `batcher` queues it and groups it
with others, ``models`` sends the batch to the model's ``worker`` process, and the answer goes back the same way.
Tensors travel between server and worker in shared memory. ``trtkp serve`` calls `trtkp.serving.server.start`.
"""
