"""The memory that all requests and answers of a server may hold, shared fairly among the connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from trtkp.machine.processes import Closing
from trtkp.serving.errors import NoMemory

__all__ = ["Account", "Memory"]


class Memory:
    """Counts the bytes that requests and answers hold, as they arrive and until they are gone.

    A connection may hold at most as much as is still free (the dynamic threshold of A. K. Choudhury and E. L. Hahne,
    IEEE/ACM Transactions on Networking 6, 1998). So one connection gets half of the memory at most, and n that take all
    they can leave 1/(n + 1) of it to the next.

    Args:
        limit: bytes in all.

    Example:
        >>> memory = Memory(limit=100)
        >>> account = memory.account("first connection")
        >>> account.grow(50)
        >>> account.grow(1)
        Traceback (most recent call last):
        trtkp.serving.errors.NoMemory: waiting requests hold all memory that this connection may have; try again later
        >>> with memory.account("second connection") as other:
        ...     other.grow(25)
        >>> memory.held
        50
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._owners: Counter[Hashable] = Counter()

    def account(self, owner: Hashable) -> Account:
        """Make the account of one request of a connection."""
        return Account(self, owner)

    def take(self, owner: Hashable, size: int) -> None:
        """Count bytes; for `Account`.

        Raises:
            NoMemory: the connection would hold more than is free.
        """
        if self._owners[owner] + size > self.limit - self.held:
            raise NoMemory("waiting requests hold all memory that this connection may have", remedy="try again later")
        if size:  # an entry of nothing would keep the connection for ever
            self.held += size
            self._owners[owner] += size

    def give(self, owner: Hashable, size: int) -> None:
        """Count bytes no longer; for `Account`."""
        self.held -= size
        self._owners[owner] -= size
        if not self._owners[owner]:
            del self._owners[owner]


class Account(Closing):
    """The bytes that one request holds. As a context manager, it gives them back at the end.

    Attributes:
        held: the bytes.
    """

    __slots__ = ("_memory", "_owner", "held")

    def __init__(self, memory: Memory, owner: Hashable) -> None:
        self.held = 0
        self._memory = memory
        self._owner = owner

    def grow(self, size: int) -> None:
        """Hold more bytes.

        Raises:
            NoMemory: the connection would hold more than is free; nothing was counted.
        """
        self._memory.take(self._owner, size)
        self.held += size

    def shrink(self, size: int) -> None:
        """Hold fewer bytes."""
        assert size <= self.held, "gave back more than was held"
        self._memory.give(self._owner, size)
        self.held -= size

    def close(self) -> None:
        """Give back all bytes."""
        if self.held:
            self.shrink(self.held)
