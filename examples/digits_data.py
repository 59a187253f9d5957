"""scikit-learn's handwritten digits (1797 real scans, UCI), up-sampled to 16 x 16 and split into training and test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits

__all__ = ["batches_of", "load"]


def load(seed: int = 0) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """``(x, y)`` for training (1297 images) and for test (500).

    x is float32 [N, 1, 16, 16] with mean 0 and standard deviation 1; y is int64 [N]. ``seed`` decides the split.
    """
    digits = load_digits()
    images = np.kron(digits.images, np.ones((2, 2))).astype(np.float32)[:, None]
    images = (images - images.mean()) / images.std()
    order = np.random.default_rng(seed).permutation(len(images))
    train, test = order[500:], order[:500]
    labels = digits.target.astype(np.int64)
    return (images[train], labels[train]), (images[test], labels[test])


def batches_of(
    x: np.ndarray, y: np.ndarray, size: int = 64, seed: int = 0
) -> Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """A function that yields the batches of one epoch at each call.

    Samples are shuffled anew every epoch. All images of a batch are shifted by the same random 0 to 2 pixels.

    Args:
        x: images, [N, C, H, W].
        y: labels, [N].
        size: batch size.
        seed: seed of order and shifts.
    """
    rng = np.random.default_rng(seed)

    def epoch() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = rng.permutation(len(x))
        for begin in range(0, len(x), size):
            chosen = order[begin : begin + size]
            shift = rng.integers(-2, 3, 2)
            yield torch.from_numpy(np.roll(x[chosen], shift, (2, 3))), torch.from_numpy(y[chosen])

    return epoch
