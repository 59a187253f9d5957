"""Fixtures that the tests of this folder share with others."""

from __future__ import annotations

from tests.layers_and_masks import masks_and_groups, new_layer

__all__ = ["masks_and_groups", "new_layer"]
