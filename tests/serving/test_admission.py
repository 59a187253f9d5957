"""Memory shared among connections, and connections that make room for others."""

from __future__ import annotations

import weakref
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from trtkp.serving.admission.connections import Connections
from trtkp.serving.admission.memory import Account, Memory
from trtkp.serving.errors import NoMemory


def take_all(account: Account) -> int:
    """Take a byte at a time, until no more is given."""
    while True:
        try:
            account.grow(1)
        except NoMemory:
            return account.held


def test_each_hog_leaves_room_for_the_next() -> None:
    """n connections that take all they can, one after the other, leave 1/2^n; at the same time, 1/(n + 1)."""
    memory = Memory(1200)
    assert [take_all(memory.account(owner)) for owner in range(3)] == [600, 300, 150]
    memory = Memory(1200)
    accounts = [memory.account(owner) for owner in range(3)]
    for _ in range(1200):
        for account in accounts:
            with suppress(NoMemory):
                account.grow(1)
    assert 1200 // 4 - 3 <= memory.limit - memory.held <= 1200 // 4
    for account in accounts:
        account.close()
    assert memory.held == 0


@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(-50, 100)), max_size=60))
def test_what_is_held_is_the_sum_of_the_accounts(steps: list[tuple[int, int]]) -> None:
    memory = Memory(400)
    accounts = [memory.account(number % 3) for number in range(6)]
    for number, size in steps:
        account = accounts[number]
        if size < 0:
            account.shrink(min(account.held, -size))
            continue
        before = memory.held
        try:
            account.grow(size)
        except NoMemory:
            assert memory.held == before
    assert memory.held == sum(account.held for account in accounts) <= 400
    for account in accounts:
        account.close()
    assert memory.held == 0


class Link:
    def __init__(self) -> None:
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


def test_the_connection_that_was_idle_longest_makes_room() -> None:
    connections = Connections(limit=3)
    first, second, third, fourth, fifth = (Link() for _ in range(5))
    for link in (first, second, third):
        connections.add(link)
    connections.touch(first)  # now the second was idle longest
    connections.add(fourth)
    assert [link.dropped for link in (first, second, third)] == [False, True, False]
    connections.busy(third)
    connections.add(fifth)
    assert [link.dropped for link in (first, third, fourth)] == [True, False, False]
    connections.remove(second)  # its end is noticed later
    assert len(connections) == 3


def test_beyond_busy_connections_there_is_a_reserve_for_health() -> None:
    connections = Connections(limit=2)
    busy = [Link() for _ in range(2)]
    for link in busy:
        connections.add(link)
        connections.busy(link)
    probes = [Link() for _ in range(40)]
    for probe in probes:
        connections.add(probe)
        connections.busy(probe)
        assert connections.health_only(probe)
    assert not any(link.dropped for link in busy)
    assert [probe.dropped for probe in probes] == [True] * 8 + [False] * 32
    connections.remove(busy[0])
    later = Link()
    connections.add(later)
    assert not connections.health_only(later)


def test_reserve_is_left_when_there_is_room() -> None:
    """A connection that was taken in while all were busy answers everything once one of them has ended."""

    class Link:
        def drop(self) -> None:
            raise AssertionError("nothing has to go")

    first, second = Link(), Link()
    connections = Connections(limit=1)
    connections.add(first)
    connections.busy(first)
    connections.add(second)
    assert connections.health_only(second)
    connections.remove(first)
    assert not connections.health_only(second)
    assert len(connections) == 1


def test_nothing_is_kept_of_a_connection_that_held_nothing() -> None:
    """A request without a body counts zero bytes; the connection must not stay in the books for that."""

    class Link:
        pass

    link = Link()
    gone = weakref.ref(link)
    memory = Memory(100)
    with memory.account(link) as account:
        account.grow(0)
    del link, account
    assert gone() is None
