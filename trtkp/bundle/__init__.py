"""Bundles: the directory that ``build`` writes and that ``verify``, ``bench``, ``serve`` and ``load`` open."""

from __future__ import annotations

from trtkp.bundle.manifest import MANIFEST, LayerRecord, Manifest
from trtkp.bundle.reader import Bundle, load
from trtkp.bundle.writer import BundleWriter

__all__ = ["MANIFEST", "Bundle", "BundleWriter", "LayerRecord", "Manifest", "load"]
