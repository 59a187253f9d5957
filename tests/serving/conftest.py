"""Bundles to serve, and one server that most tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import trtkp
from tests.models import write_classifier
from tests.serving.servers import Server, running
from trtkp.pipeline.options import BuildOptions


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``kep`` (batch 1..64), ``one`` and ``four`` (fixed batch), ``wide`` (2..8), ``net/1`` and ``net/2``."""
    folder = tmp_path_factory.mktemp("served")
    write_classifier(folder / "net.onnx")
    threads = BuildOptions(threads=1)
    trtkp.build(folder / "net.onnx", folder / "kep", method="kep", share="per-layer", options=threads)
    trtkp.build(folder / "net.onnx", folder / "net" / "1", method="none", options=threads)
    write_classifier(folder / "other.onnx", seed=1)
    trtkp.build(folder / "other.onnx", folder / "net" / "2", method="none", options=threads)
    wide = BuildOptions(threads=1, min=("2x3x8x8",), opt=("4x3x8x8",), max=("8x3x8x8",))
    trtkp.build(folder / "net.onnx", folder / "wide", method="none", options=wide)
    for name, size in (("one", 1), ("four", 4)):
        write_classifier(folder / f"{name}.onnx", batch=size)
        trtkp.build(folder / f"{name}.onnx", folder / name, method="none", options=threads)
    return folder


@pytest.fixture(scope="session")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of all of them, with the version directory ``net``; not to be stopped or broken."""
    names = ("kep", "one", "four", "wide", "net")
    with running(tmp_path_factory.mktemp("server"), *(bundles / name for name in names), "--threads", "1") as server:
        yield server


@pytest.fixture(scope="session")
def answers(bundles: Path) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """What ``kep`` gives, straight from its engine, row by row: rows of a batch do not depend on each other."""
    with trtkp.load(bundles / "kep") as bundle:
        yield lambda images: np.concatenate([bundle.run({"image": row[None]})["y"] for row in images])
