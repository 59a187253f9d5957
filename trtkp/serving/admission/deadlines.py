"""How long clients may take."""

from __future__ import annotations

from dataclasses import dataclass

from trtkp.serving.options import ServeOptions

__all__ = ["Deadlines"]

#: Bytes a second below which a transfer is given up: a modem of 1998 is slower, a phone at the edge of a cell is not.
_SLOWEST = 1 << 14


@dataclass(frozen=True)
class Deadlines:
    """Time limits in seconds.

    Attributes:
        step_s: for the head of a request, and for every further piece of a body or answer to be sent or read.
        idle_s: for the next request of a connection, or the next message of a stream.

    Example:
        >>> Deadlines(step_s=30.0).transfer_s(64 << 20)
        4126.0
    """

    step_s: float
    idle_s: float = 75.0  # nginx's default: longer than the idle time of usual load balancers (60 s)

    @classmethod
    def of(cls, options: ServeOptions) -> Deadlines:
        """The limits that follow from ``--timeout``."""
        return cls(options.timeout_s)

    def transfer_s(self, size: int) -> float:
        """Seconds for all of a body or answer of so many bytes, however steadily it moves."""
        return self.step_s + size / _SLOWEST
