"""What of the GPU runner can be tested without a GPU: the choice of library, and reading an engine's tensors."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from trtkp.engine.base import importable
from trtkp.engine.feeds import check_feeds
from trtkp.engine.trt_runner import engine_spec
from trtkp.errors import InputError

_ENGINE = SimpleNamespace(
    get_tensor_shape=lambda name: (-1, 3, 8, 8) if name == "image" else (-1, 10),
    get_tensor_dtype=lambda name: SimpleNamespace(name="HALF"),
    get_tensor_profile_shape=lambda name, index: [(1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)],
)


def test_profile_of_an_engine_is_honoured_by_the_feed_check() -> None:
    spec = engine_spec(_ENGINE, "image", is_input=True)
    assert (spec.dtype, spec.shape[1:]) == ("float16", (3, 8, 8))
    assert set(check_feeds([spec], {"image": np.zeros((4, 3, 8, 8), np.float16)})) == {"image"}
    with pytest.raises(InputError, match=r"got float16\[5, 3, 8, 8\].*= 1\.\.4"):
        check_feeds([spec], {"image": np.zeros((5, 3, 8, 8), np.float16)})
    assert engine_spec(_ENGINE, "logits", is_input=False).shape[1] == 10


@pytest.mark.skipif(not importable("polygraphy"), reason="package polygraphy is not installed")
def test_polygraphy_drives_one_library_in_a_process() -> None:
    code = (
        "from trtkp.engine.trt_runner import use_polygraphy_for as use\n"
        "use(rtx=True); use(rtx=True)\n"
        "from polygraphy.mod.trt_importer import tensorrt_module_and_version_string as name\n"
        "print(name())\n"
        "try: use(rtx=False)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tensorrt_rtx" in result.stdout
    assert "NotRunnableError Polygraphy drives TensorRT-RTX" in result.stdout
