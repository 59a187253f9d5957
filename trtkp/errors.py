"""Errors that reach the user: one line that names the file, the layer and the remedy.

``InputError`` means bad usage or bad input (exit status 2); ``JobError`` a job that failed (exit status 1).
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    pass

__all__ = ["InputError", "IntegrityError", "JobError", "NotRunnableError", "TrtkpError"]


class TrtkpError(Exception):
    """Base of every error that trtkp raises on purpose.

    Args:
        message: what is wrong, with the offending values (shape, dtype, limit).
        file: the file at fault.
        layer: the layer or tensor at fault.
        remedy: what the user can do about it.
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
        """The same error, of that file."""
        return type(self)(self.message, file=file, layer=self.layer, remedy=self.remedy)


class InputError(TrtkpError):
    """Bad usage or bad input: nothing was started, nothing was written."""

    exit_code = 2


class IntegrityError(InputError):
    """A bundle whose bytes are not those that were written (flipped, cut, missing or foreign)."""


class JobError(TrtkpError):
    """A job that was started and failed; what was there before is untouched."""


class NotRunnableError(JobError):
    """An engine that is in order but cannot run on this machine (no GPU, another GPU, a package missing).

    ``verify`` reports it as *not run (reason)*, which is not a failure.
    """
