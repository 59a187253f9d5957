"""Standard output and error as they are: with any encoding, closed, on a full disk, or with a reader that is gone.

A command has done its work when it prints, so what cannot be printed is written in other characters or left out.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

__all__ = ["CLOSED_PIPE", "discard_output", "is_closed_pipe", "usable_streams"]

#: Exit status when the reader of the output is gone: 128 + SIGPIPE, as shells have it.
CLOSED_PIPE = 141

_HANDLER = "trtkp.plain"
#: What the characters that our tables use become in an encoding that lacks them.
_PLAIN = {"→": "->", "…": "...", "–": "-", "—": "-", "±": "+/-", "×": "x", "µ": "u", "·": "-"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler for codecs: characters become similar ones, or their escapes."""
    assert isinstance(error, UnicodeEncodeError)
    text = "".join(
        _PLAIN.get(char) or char.encode("ascii", "backslashreplace").decode()
        for char in error.object[error.start : error.end]
    )
    return text, error.end


@contextmanager
def usable_streams() -> Iterator[None]:
    """Inside, writing any text to ``sys.stdout`` and ``sys.stderr`` works, whatever their encoding; closed ones too."""
    codecs.register_error(_HANDLER, _plain)
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is None:  # closed before the program began, as by >&-
                null = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect(null))
            elif isinstance(stream, io.TextIOWrapper):
                stack.callback(_restore, stream, stream.errors)
                stream.reconfigure(errors=_HANDLER)
        yield


def _restore(stream: io.TextIOWrapper, errors: str | None) -> None:
    with suppress(OSError, ValueError):  # the disk is full, or the stream is closed by now
        stream.reconfigure(errors=errors)


def is_closed_pipe(error: BaseException) -> bool:
    """Whether an error means that the reader of the output is gone. rich turns it into an exit of the program."""
    return isinstance(error, BrokenPipeError) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    )


def discard_output() -> None:
    """What is left in the buffers must not raise again when the interpreter ends."""
    with suppress(OSError, ValueError):  # ValueError: a stream without a file, as in tests
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                os.dup2(null, stream.fileno())
        os.close(null)
