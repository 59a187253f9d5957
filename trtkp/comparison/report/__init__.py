"""Write a comparison as one self-contained HTML file. This package alone imports plotly, jinja2 and pillow."""

from __future__ import annotations

from trtkp.comparison.report.page import check_packages, render, write_report

__all__ = ["check_packages", "render", "write_report"]
