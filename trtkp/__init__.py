"""trtkp: kernel-level pruning of CNNs, packed, planned and built into TensorRT engines."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
