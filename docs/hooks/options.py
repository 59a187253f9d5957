"""``reference/options.md``: the options of every command, from the declarations that the command line is made of."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from trtkp.cli.reference import reference

_HEAD = """# Command line options

`trtkp COMMAND --help-all` shows the same in the terminal. `trtkp COMMAND --help` shows the options that most users
need, and with `--method NAME` the settings of that method. Every command also takes `--debug`, which adds the traceback
to an error.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "reference/options.md", content=page()))
    return files


def page() -> str:
    """A section for each command, in the order of ``trtkp --help``."""
    return f"{_HEAD}\n{reference()}"
