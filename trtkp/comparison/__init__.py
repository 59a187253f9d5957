"""Compare engines on the same inputs: speed, output difference, accuracy, memory, and time per layer."""

from __future__ import annotations

from trtkp.comparison.result import Comparison, Entry
from trtkp.comparison.run import compare

__all__ = ["Comparison", "Entry", "compare"]
