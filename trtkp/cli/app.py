"""The program: its commands, in the order of its help, and what becomes of their errors.

A command parses its options, calls one function of the Python API and shows what it returned.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from trtkp.cli import console
from trtkp.cli.help import Command
from trtkp.cli.streams import CLOSED_PIPE, discard_output, is_closed_pipe, usable_streams
from trtkp.errors import TrtkpError, is_out_of_memory
from trtkp.files import is_full, unreadable, unwritable
from trtkp.version import __version__

__all__ = ["COMMANDS", "app", "load_command", "run"]

#: The commands in the order of the help. Each has a module of this package to itself, imported when it is run.
COMMANDS = (
    "build", "prune", "advise", "calibrate", "inspect", "export-index", "verify", "bench", "compare", "doctor",
    "search", "serve", "export-triton", "export-kserve",
)  # fmt: skip


def load_command(name: str) -> Any:
    """A command as typer runs it."""
    module = name.replace("-", "_")
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(name, cls=Command)(getattr(importlib.import_module(f"trtkp.cli.{module}"), module))
    return typer.main.get_command(one)


class _Program(TyperGroup):
    """Imports a command's module when the command is asked for: the help of one need not wait for all."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # for a name that is none, all are loaded: the error suggests the nearest
        for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = load_command(name)
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="trtkp",
    cls=_Program,
    help="Kernel-level pruning of CNNs, packed, planned and built into TensorRT engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Exit status after Ctrl-C, as shells have it.
_INTERRUPTED = 130


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; errors become one line on standard error, and a traceback only with ``--debug``."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with usable_streams():
        return _run(arguments, debug=debug)


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        with nullcontext() if debug else _quiet_libraries():
            status = int(app(arguments, prog_name="trtkp", standalone_mode=False, obj=arguments) or 0)
            sys.stdout.flush()  # a reader that is gone shows itself here, not when the interpreter ends
        message = ""
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if is_closed_pipe(error):
            discard_output()
            return CLOSED_PIPE
        if isinstance(error, SystemExit):
            raise
        if debug:
            traceback.print_exc()
        status, message = _explain(error)
    if status == _INTERRUPTED:  # raised, or already turned into a status
        message = "interrupted; nothing was changed"
    if message:
        console.error(message)
    discard_output()
    return status


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit status and line of an error; no line where help was printed for want of arguments."""
    if isinstance(error, TrtkpError):
        return error.exit_code, str(error)
    if isinstance(error, TyperException):
        return 2, error.format_message()
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _INTERRUPTED, ""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        # a file of the user's, whichever module met it
        file = Path(os.fsdecode(error.filename))
        full = is_full(error)
        return (1, str(unwritable(error, file))) if full else (2, str(unreadable(error, file)))
    if isinstance(error, OSError) and is_full(error):
        return 1, f"standard output cannot be written ({error.strerror}); free some space"
    if is_out_of_memory(error):
        return 1, "out of memory; free some, raise the limit, or take smaller shapes"
    text = " ".join(str(error).split()) or "no message"
    return 1, f"internal error, {type(error).__name__}: {text[:300]}; run again with --debug and report it"


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Log lines and warnings of the libraries behind us are not for the user of a command."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)  # noqa: T201 - what was asked for
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks and library logs; anywhere on the line.")] = False,
) -> None:
    """Kernel-level pruning of CNNs, packed, planned and built into TensorRT engines."""
    del version, debug  # dealt with by then; declared for the help
