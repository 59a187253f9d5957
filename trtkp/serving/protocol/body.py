"""Where the body of a request is collected."""

from __future__ import annotations

import mmap

__all__ = ["Body"]

#: Bytes up to which a body lies in ordinary memory.
_SMALL = 1 << 16


class Body:
    """Bytes that arrive one piece after the other.

    A large body lies in pages of its own, which the system provides as they are written and takes back at once. Arrays
    that grew in the heap left it in pieces: 1 GiB of bodies cost 1.6 GB, and 1.3 GB of it stayed.

    Args:
        limit: most bytes.

    Example:
        >>> body = Body(limit=1 << 30)
        >>> body.append(b"ab")
        >>> len(body), bytes(body.view)
        (2, b'ab')
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._data: bytearray | mmap.mmap = bytearray()

    def __len__(self) -> int:
        return self._size

    def append(self, piece: bytes) -> None:
        """Add a piece; all together are no longer than the limit."""
        end = self._size + len(piece)
        assert end <= self._limit, "the caller looks at the length first"
        if isinstance(self._data, bytearray):
            if end <= _SMALL:
                self._data += piece
                self._size = end
                return
            pages = mmap.mmap(-1, self._limit, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_NOHUGEPAGE)  # else a piece of 64 KiB could cost 2 MiB
            pages[: self._size] = bytes(self._data)
            self._data = pages
        self._data[self._size : end] = piece
        self._size = end

    @property
    def view(self) -> memoryview:
        """All that has arrived; nothing may be added afterwards."""
        return memoryview(self._data)[: self._size]
