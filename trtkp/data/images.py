"""Folders of images, either flat or with one folder per class, read with Pillow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError, JobError
from trtkp.files import reading, unreadable

__all__ = ["image_files", "is_image_folder", "open_image", "read_images"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: Pillow's modes by number of channels.
_MODES = {1: "L", 3: "RGB"}


def is_image_folder(path: Path) -> bool:
    """Whether a folder, or one of its folders, holds images."""
    return bool(image_files(path)[0])


def read_images(path: Path, shape: Sequence[int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None]:
    """The images of a folder, and their labels if there is one folder per class.

    An image is resized in proportion so that it just covers H x W, and then cropped around its centre.

    Args:
        path: the folder.
        shape: (C, H, W) of one sample; C is 1 or 3.

    Returns:
        Images, uint8 [N, C, H, W], in the order of their names. Labels, int64 [N], numbers of the class folders in
        sorted order; None if there are no class folders.

    Raises:
        InputError: a file is no image, or the shape is not one of images.
        JobError: Pillow is not installed.
    """
    if len(shape) != 3 or shape[0] not in _MODES:
        raise InputError(f"the model takes {list(shape)}, not images of 1 or 3 channels", file=path)
    channels, height, width = shape
    files, labels = image_files(path)
    images = np.empty((len(files), channels, height, width), np.uint8)
    for i, file in enumerate(files):
        images[i] = open_image(file, (channels, height, width))
    return images, labels


def open_image(
    file: Path,
    shape: tuple[int, int, int],
    share: float = 1.0,
    box: Callable[[int, int], tuple[int, int, int, int]] | None = None,
) -> npt.NDArray[np.uint8]:
    """An image, resized and cropped, as uint8 [C, H, W].

    Args:
        file: the image.
        shape: (C, H, W) of the result; C is 1 or 3.
        share: the image is resized so that this share of it, around its centre, covers H x W.
        box: function from the image's width and height to the left, top, right and bottom of the part to resize. It
            replaces ``share``.

    Raises:
        InputError: the file is no image.
        JobError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise JobError(
            "a folder of images needs Pillow, which is not installed", remedy="pip install 'trtkp[calibrate]'"
        ) from None
    channels, height, width = shape
    bilinear = Image.Resampling.BILINEAR
    try:
        with Image.open(file) as image:
            plain = image.convert(_MODES[channels])
            if box is not None:
                fitted = plain.resize((width, height), bilinear, box=box(*plain.size))
            else:
                fitted = ImageOps.fit(plain, (width, height), bilinear, bleed=(1 - share) / 2)
    except Image.DecompressionBombError:
        raise InputError(
            f"has more pixels than {2 * (Image.MAX_IMAGE_PIXELS or 0):,}, the most that Pillow unpacks", file=file,
            remedy="scale it down",
        ) from None  # fmt: skip
    except PermissionError as error:
        raise unreadable(error, file, "image") from None
    except Exception as error:  # Pillow's readers raise different exceptions for every format
        raise InputError(f"is no readable image ({type(error).__name__})", file=file) from None
    return np.asarray(fitted, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def image_files(path: Path) -> tuple[list[Path], npt.NDArray[np.int64] | None]:
    """The image files of a folder in the order of their names, and their labels if there is one folder per class."""

    def images(folder: Path) -> list[Path]:
        return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in _SUFFIXES)

    with reading(path, "folder of images"):
        flat = images(path)
        if flat:
            return flat, None
        classes = [images(folder) for folder in sorted(path.iterdir()) if folder.is_dir()]
    files = [file for members in classes for file in members]
    return files, np.repeat(np.arange(len(classes), dtype=np.int64), [len(members) for members in classes])
