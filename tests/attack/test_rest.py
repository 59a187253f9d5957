"""The HTTP side under attack: health is answered, memory is bounded, nobody else is turned away."""

from __future__ import annotations

import pytest

from tests.attack.harness import Record, errors_in
from tests.attack.rest import ATTACKS, run_attack, unexpected
from tests.serving.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.serial]

#: ``--max-pending``, and what attacks may cost beyond it.
MEMORY = (1 << 30) + (200 << 20)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(server: Server, attack: str) -> None:
    # Other programs on the machine can delay one run; an attack that succeeds delays each.
    record = Record()
    for _ in range(3):
        record = run_attack(server, attack)
        assert not record.lost, record
        assert not record.errors, record
        assert not unexpected(record.statuses), record
        assert record.served >= 10, record
        assert record.peak_bytes - record.before_bytes < MEMORY, record
        if max(record.health_s.values()) < 0.5:
            return
    raise AssertionError(record)


def test_nothing_is_held_when_all_is_over(server: Server) -> None:
    text = server.request("GET", "/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["trtkp_held_bytes"]) == 0
    assert 1 <= float(values["trtkp_connections"]) <= 1024 + 32


@pytest.mark.parametrize(
    "status", ["500", "the attack took too long", "Traceback (most recent call last):", "KeyError"]
)
def test_a_status_that_no_attack_may_get_is_found(status: str) -> None:
    assert unexpected({"400": 3, "held": 1, status: 1}) == {status}


def test_errors_are_found_in_a_log() -> None:
    bad = ['{"level":"error","event":"a"}', '{"level": "critical"}', "Traceback (most recent call last):"]
    assert errors_in("\n".join(['{"level": "warning"}', *bad, "  File x"])) == bad
