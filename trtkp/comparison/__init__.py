"""Comparing engines: the same inputs, runs in turn, and everything that a speed-up has cost."""

from __future__ import annotations

from trtkp.comparison.result import Comparison, Entry
from trtkp.comparison.run import compare

__all__ = ["Comparison", "Entry", "compare"]
