"""The GPU behind one small interface: memory, streams, events and graphs, through pycuda or cuda-bindings.

Importing this package imports neither of them.
"""
