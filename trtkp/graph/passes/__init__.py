"""Passes that rewrite an ONNX graph; one file each."""
