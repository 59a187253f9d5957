"""The TensorRT and TensorRT-RTX backends, and what they share."""
