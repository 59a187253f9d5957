"""The bundles of the tests of serving, and a server to attack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.servers import attacked_server, build_large
from tests.serving.conftest import bundles
from tests.serving.servers import Server

__all__ = ["bundles"]


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of ``kep`` and ``large``, whose log is looked at in the end."""
    folder = tmp_path_factory.mktemp("attacked")
    with attacked_server(folder, bundles / "kep", build_large(folder)) as server:
        yield server
        assert "Traceback" not in server.log_file.read_text()
        assert not [line for line in server.log if line["level"] == "error"]
