"""Engines of TensorRT and TensorRT-RTX at run time: the GPU behind one small interface, contexts, times.

Importing this package imports neither TensorRT nor CUDA.
"""
