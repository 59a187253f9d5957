"""Per-layer ratios and granularity by measured latency: sensitivity and latency tables, an exact choice, a search."""
