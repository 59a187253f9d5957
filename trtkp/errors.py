"""Errors that reach the user: one line that names the file, the layer and the remedy.

- `InputError`: bad usage or bad input. The command exits with status 2.
- `JobError`: a job was started and failed. The command exits with status 1.

Everything that trtkp raises on purpose derives from `TrtkpError`. Any other exception is a bug in trtkp.
"""

from __future__ import annotations

import errno
from os import PathLike, fspath
from typing import Self

__all__ = ["InputError", "IntegrityError", "JobError", "NotRunnableError", "TrtkpError", "is_out_of_memory",
           "raise_if_out_of_memory"]  # fmt: skip

#: What the allocators of C++ (std::bad_alloc), ONNX Runtime, PyTorch, NumPy and protobuf say, in lower case.
_NO_MEMORY = ("bad_alloc", "failed to allocate memory", "bad allocation", "not enough memory", "can't allocate memory",
              "unable to allocate", "cannot allocate memory", "out of memory",
              "failed to serialize proto")  # fmt: skip


class TrtkpError(Exception):
    """Base of every error that trtkp raises on purpose.

    Args:
        message: what is wrong, with the offending values (shape, dtype, limit).
        file: the file at fault.
        layer: the layer or tensor at fault.
        remedy: what the user can do about it.

    Example:
        >>> print(InputError("the weight is float64", file="net.onnx", layer="conv1.weight", remedy="use float32"))
        net.onnx: layer conv1.weight: the weight is float64; use float32
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        file: str | PathLike[str] | None = None,
        layer: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.message = message
        self.file = fspath(file) if file is not None else None
        self.layer = layer
        self.remedy = remedy
        where = [part for part in (self.file, f"layer {layer}" if layer else None) if part]
        line = ": ".join([*where, message])
        if remedy:
            line = f"{line.rstrip('.')}; {remedy}"
        super().__init__(" ".join(line.split()))

    def in_file(self, file: str | PathLike[str]) -> Self:
        """The same error, attributed to a file."""
        return type(self)(self.message, file=file, layer=self.layer, remedy=self.remedy)


class InputError(TrtkpError):
    """Bad usage or bad input. Nothing was started, and nothing was written."""

    exit_code = 2


class IntegrityError(InputError):
    """A bundle whose files are not those that were written: changed, cut off, missing or added."""


class JobError(TrtkpError):
    """A job that was started and failed. What was there before is untouched."""


class NotRunnableError(JobError):
    """An intact engine that cannot run on this machine: there is no GPU, it is another GPU, or a package is missing.

    ``trtkp verify`` reports it as *not run (reason)*, which is not a failure.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice. Libraries report that in exceptions of several types, or caused by others.

    Example:
        >>> is_out_of_memory(RuntimeError("std::bad_alloc")), is_out_of_memory(RuntimeError("bad magic"))
        (True, False)
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM):
            return True
        if not isinstance(seen, TrtkpError) and any(words in str(seen).lower() for words in _NO_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise `MemoryError` if that is what an error means.

    For places that turn any exception of a library into an `InputError`: a file is not broken because memory does not
    suffice.
    """
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from error
