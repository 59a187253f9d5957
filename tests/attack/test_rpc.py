"""The gRPC side under attack: health is answered, memory is bounded, nobody else is turned away."""

from __future__ import annotations

import pytest
import tritonclient.grpc as triton_grpc

from tests.attack.harness import attacked
from tests.attack.rpc import ATTACKS
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
    assert record.served >= 10, record
    assert max(record.health_s.values()) < max(0.5, 5 * record.calm_s), record
    assert record.peak_bytes - record.before_bytes < MEMORY, record
