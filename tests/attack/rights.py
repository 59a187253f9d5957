"""File permissions that bind a child process, also one of root."""

from __future__ import annotations

import ctypes
import os


def bound_by_permissions() -> None:
    """In a child before it starts: root, too, is refused what the mode of a file or folder forbids."""
    if os.geteuid() == 0:
        drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
        for capability in (dac_override, dac_read_search):
            assert ctypes.CDLL(None, use_errno=True).prctl(drop_from_bounding_set, capability, 0, 0, 0) == 0
