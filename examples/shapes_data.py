"""A generated data set of ten classes, 32 x 32 pixels in colour: shapes and textures with random pose and noise.

The classes are disc, ring, square, frame, triangle, cross, bar, two discs, checkerboard and stripes. A shape has soft
edges and a random colour, position, size and angle. It is drawn over a colour gradient, with noise and a random square
of clutter on top. Images depend on the seed alone.

A small net trains on it in about two minutes on a CPU, and the task is hard enough that its accuracy stays below 100 %.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CLASSES", "load"]

CLASSES = ("disc", "ring", "square", "frame", "triangle", "cross", "bar", "two discs", "checkerboard", "stripes")
_SIZE = 32
_NOISE = 0.15


def load(
    train: int = 4000, test: int = 1000, seed: int = 0, noise: float = _NOISE
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """``(x, y)`` for training and for test: x is float32 [N, 3, 32, 32], y is int64 [N].

    Args:
        train: number of training images.
        test: number of test images.
        seed: seed of all images.
        noise: standard deviation of the noise on every pixel, before images are scaled to mean 0 and standard
            deviation 1. More noise makes the task harder.
    """
    x, y = _images(train + test, np.random.default_rng(seed), noise)
    x = (x - x.mean()) / x.std()
    return (x[:train], y[:train]), (x[train:], y[train:])


def _images(count: int, rng: np.random.Generator, noise: float) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, len(CLASSES), count)
    grid = (np.arange(_SIZE, dtype=np.float32) + 0.5) / _SIZE * 2 - 1
    rows, columns = (part[None] for part in np.meshgrid(grid, grid, indexing="ij"))
    shift = rng.uniform(-0.3, 0.3, (2, count, 1, 1)).astype(np.float32)
    angle = rng.uniform(0, np.pi, (count, 1, 1)).astype(np.float32)
    scale = rng.uniform(0.35, 0.65, (count, 1, 1)).astype(np.float32)
    v, u = rows - shift[0], columns - shift[1]
    # coordinates in which the shape is upright and about 1 is its edge
    u, v = ((np.cos(angle) * u + np.sin(angle) * v) / scale, (np.cos(angle) * v - np.sin(angle) * u) / scale)
    shapes = np.zeros((count, _SIZE, _SIZE), np.float32)
    for label in range(len(CLASSES)):
        of_class = labels == label
        inside = _inside(label, u[of_class], v[of_class])
        shapes[of_class] = 1 / (1 + np.exp(-12 * inside))
    paper, contrast, slope = rng.uniform(0, 1, (3, count, 3, 1, 1)).astype(np.float32)
    paper, ink = -paper, contrast
    image = paper + (slope - 0.5) * (rows + columns)[:, None] / 2
    image = image + (ink - image) * shapes[:, None]
    corner = rng.integers(0, _SIZE - 10, (2, count))
    patch = rng.uniform(-1, 0.5, (count, 3)).astype(np.float32)
    for i in range(count):
        image[i, :, corner[0, i] : corner[0, i] + 8, corner[1, i] : corner[1, i] + 8] = patch[i][:, None, None]
    image += rng.normal(0, noise, image.shape).astype(np.float32)
    return image.astype(np.float32), labels


def _inside(label: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Positive inside the shape, negative outside, about the distance from the edge; u and v are its coordinates."""
    radius, box = np.hypot(u, v), np.maximum(np.abs(u), np.abs(v))
    match CLASSES[label]:
        case "disc":
            return 1 - radius
        case "ring":
            return 0.3 - np.abs(radius - 0.8)
        case "square":
            return 0.9 - box
        case "frame":
            return 0.25 - np.abs(box - 0.75)
        case "triangle":
            return np.minimum(v + 0.6, np.minimum(0.7 - 0.87 * u - 0.5 * v, 0.7 + 0.87 * u - 0.5 * v))
        case "cross":
            return np.minimum(1 - box, 0.3 - np.minimum(np.abs(u), np.abs(v)))
        case "bar":
            return np.minimum(1.2 - np.abs(u), 0.35 - np.abs(v))
        case "two discs":
            return 0.5 - np.minimum(np.hypot(u - 0.7, v), np.hypot(u + 0.7, v))
        case "checkerboard":
            return np.minimum(1 - box, np.sin(4 * u) * np.sin(4 * v))
        case _:
            return np.minimum(1 - box, np.sin(6 * u))
