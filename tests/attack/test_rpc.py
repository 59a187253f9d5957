"""The gRPC side under attack: health is answered, memory is bounded, nobody else is turned away."""

from __future__ import annotations

import pytest
import tritonclient.grpc as triton_grpc

from tests.attack.harness import attacked
from tests.attack.rpc import ATTACKS, unexpected
from tests.serving.servers import Server, batch_input, images

pytestmark = [pytest.mark.slow, pytest.mark.serial]

#: ``--max-pending``, and what attacks may cost beyond it.
MEMORY = (1 << 30) + (200 << 20)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(server: Server, attack: str) -> None:
    with server.grpc_client() as client:

        def behave() -> None:
            assert client.infer("kep", batch_input(triton_grpc, images(1))).as_numpy("y").shape == (1, 5)

        behave()
        record = attacked(server, "tests.attack.rpc", attack, behave)
    assert not record.lost, record
    assert not record.errors, record
    assert not unexpected(record.statuses), record
    assert record.served >= 10, record
    assert max(record.health_s.values()) < max(0.5, 5 * record.calm_s), record
    assert record.peak_bytes - record.before_bytes < MEMORY, record


@pytest.mark.parametrize("status", ["13 broken", "2 ", "INTERNAL", "UNKNOWN", "the attack took too long", "KeyError"])
def test_a_status_that_no_attack_may_get_is_found(status: str) -> None:
    assert unexpected({"8 too much is pending": 3, "held": 1, "RESOURCE_EXHAUSTED": 1, status: 1}) == {status}
