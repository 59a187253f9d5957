"""A comparison as one HTML file that needs no network."""

from __future__ import annotations

from trtkp.comparison.report.page import check_packages, render, write_report

__all__ = ["check_packages", "render", "write_report"]
