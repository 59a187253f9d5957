"""NVIDIA's Jetson boards: which one this is, and which JetPack it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Jetson", "find_jetson"]

#: JetPack by the major release of Jetson Linux (L4T) that it is based on, from NVIDIA's JetPack archive.
_JETPACKS = {35: 5, 36: 6, 38: 7, 39: 7}


@dataclass(frozen=True)
class Jetson:
    """A Jetson board.

    Attributes:
        model: the board, such as ``NVIDIA Jetson AGX Orin Developer Kit``; empty if it is not known.
        linux: release of Jetson Linux (L4T), such as ``36.4.3``; empty if it is not known.
        jetpack: major version of JetPack; None if it is not known.
    """

    model: str
    linux: str
    jetpack: int | None


def find_jetson(root: Path = Path("/")) -> Jetson | None:
    """The board that this is; None on any other machine.

    Args:
        root: the root of the file system.

    Example:
        >>> find_jetson(Path("/nowhere")) is None
        True
    """
    release = _read(root / "etc/nv_tegra_release")
    model = _read(root / "proc/device-tree/model").rstrip("\0").strip()
    if not release and "Jetson" not in model:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    linux = f"{found[1]}.{found[2]}" if found else ""
    return Jetson(model, linux, _JETPACKS.get(int(found[1])) if found else None)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""
