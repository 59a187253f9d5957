"""Describe a comparison in sentences, which the terminal and the report share."""

from __future__ import annotations

from trtkp.comparison.result import Comparison, Difference, Entry, Ratio

__all__ = ["bytes_text", "difference_text", "ratio_text", "verdict"]


def verdict(comparison: Comparison, entry: Entry) -> str:
    """Return one sentence: how fast an engine is compared with the baseline, how certain that is, and what it cost."""
    base = comparison.baseline
    speeds = "; ".join(f"at batch {latency.batch} {_speed(latency.speed_up)}" for latency in entry.latencies)
    parts = [f"{entry.label} against {base.label}: {speeds}"]
    if entry.costs is not None and entry.costs.bound is not None and entry.costs.density != 1:
        parts.append(f"{entry.costs.density:.1%} of the MACs remain, which would allow {entry.costs.bound:.2f}x")
    if entry.accuracy is not None and base.accuracy is not None:
        parts.append(f"accuracy {entry.accuracy:.2%} (baseline {base.accuracy:.2%})")
    if entry.difference is not None:
        parts.append(difference_text(entry.difference))
    return "; ".join(parts) + "."


def ratio_text(ratio: Ratio) -> str:
    """Format a speed-up with its confidence interval.

    Example:
        >>> ratio_text(Ratio(1.5, 1.42, 1.58))
        '1.50x (1.42..1.58)'
    """
    return f"{ratio.value:.2f}x ({ratio.low:.2f}..{ratio.high:.2f})"


def difference_text(difference: Difference) -> str:
    """Describe how far the outputs are from the baseline's."""
    if difference.max_abs == 0:
        return "identical outputs"
    agreement = "" if difference.top1_agreement is None else f", same top-1 class for {difference.top1_agreement:.1%}"
    return f"outputs differ by {difference.relative:.1e} (relative){agreement}"


def _speed(ratio: Ratio) -> str:
    if ratio.low <= 1 <= ratio.high:
        return f"{ratio_text(ratio)}, no significant difference"
    return f"{ratio_text(ratio)}, {'faster' if ratio.value > 1 else 'slower'}"


def bytes_text(count: int) -> str:
    """Format a size in B, kB or MB (powers of ten)."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count} B"
