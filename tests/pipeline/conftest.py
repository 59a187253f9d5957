"""Nets that several tests build from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.nets.digits import DigitsCnn
from tests.models import as_onnx, save_program, write_classifier

pytest.register_assert_rewrite("tests.pipeline.whole")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_program(DigitsCnn(16), tmp_path_factory.mktemp("digits") / "digits.pt2", (1, 16, 16))


@pytest.fixture(scope="session")
def digits_onnx(digits: Path) -> Path:
    return as_onnx(digits)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "net.onnx")
