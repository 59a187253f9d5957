"""The HTTP side under attack: health is answered, memory is bounded, nobody else is turned away."""

from __future__ import annotations

import pytest

from tests.attack.harness import errors_in, must_withstand
from tests.attack.rest import ATTACKS, run_attack, unexpected
from tests.serving.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.serial]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(server: Server, attack: str) -> None:
    must_withstand(lambda: run_attack(server, attack), unexpected)


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
