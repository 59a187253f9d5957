"""A small net with BatchNorm and dropout, and data that it learns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from trtkp.pruning.train.data import Arrays
from trtkp.pruning.train.recipe import Preprocessing


def _net(seed: int = 0, classes: int = 3, dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, classes),
    )  # fmt: skip


@pytest.fixture(scope="session")
def new_net() -> Callable[..., nn.Sequential]:
    return _net


@pytest.fixture(scope="session")
def data() -> Arrays:
    """90 images [2, 8, 8] of three classes: bars across, bars down, and noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = rng.normal(0, 0.5, (90, 2, 8, 8)).astype(np.float32)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    return Arrays(images, labels.astype(np.int64), Preprocessing(flip=True, pad=1))
