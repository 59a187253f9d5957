"""A model, and a bundle made from it that every test may damage in a copy of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import trtkp
from tests.models import write_classifier
from trtkp.pipeline.options import BuildOptions


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "net.onnx")


@pytest.fixture(scope="session")
def built(classifier: Path) -> Path:
    """Beside its source; not to be changed."""
    path = classifier.with_name("bundle")
    trtkp.build(classifier, path, method="kep", share="per-layer", options=BuildOptions(lowering="box"))
    return path


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(built, tmp_path / "bundle")
