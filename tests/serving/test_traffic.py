"""Many clients with requests of mixed sizes: none lost, none mixed up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.serving.loads import mixed_traffic
from tests.serving.servers import images, running

REQUESTS = 1600


def test_mixed_sizes_from_16_clients(
    bundles: Path, tmp_path: Path, answers: Callable[[np.ndarray], np.ndarray]
) -> None:
    """A share of what ``benchmarks/cpu/serving.py`` does with 10,000."""
    pool = images(256)
    options = ("--threads", "1", "--instances", "2", "--log-level", "warning")
    with running(tmp_path, bundles / "kep", *options) as server:
        done = mixed_traffic(server, "kep", "image", pool, answers(pool), REQUESTS)
        assert done["wrong"] == []
        assert done["requests"] == REQUESTS
        [stats] = server.request("GET", "/v2/models/kep/stats").json()["model_stats"]
        assert stats["inference_count"] > 5 * REQUESTS
        assert stats["execution_count"] < REQUESTS  # some of them shared a run
        assert server.stop() == 0
        assert server.log == []
