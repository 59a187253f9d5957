"""The gRPC side under attack: health is answered, memory is bounded, nobody else is turned away."""

from __future__ import annotations

import pytest
import tritonclient.grpc as triton_grpc

from tests.attack.harness import attacked, must_withstand
from tests.attack.rpc import ATTACKS, unexpected
from tests.serving.servers import Server, batch_input, images

pytestmark = [pytest.mark.slow, pytest.mark.serial]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(server: Server, attack: str) -> None:
    with server.grpc_client() as client:

        def behave() -> None:
            assert client.infer("kep", batch_input(triton_grpc, images(1))).as_numpy("y").shape == (1, 5)

        behave()
        must_withstand(lambda: attacked(server, "tests.attack.rpc", attack, behave), unexpected)


@pytest.mark.parametrize("status", ["13 broken", "2 ", "INTERNAL", "UNKNOWN", "the attack took too long", "KeyError"])
def test_a_status_that_no_attack_may_get_is_found(status: str) -> None:
    assert unexpected({"8 too much is pending": 3, "held": 1, "RESOURCE_EXHAUSTED": 1, status: 1}) == {status}
