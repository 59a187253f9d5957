"""Links from a page to a file of the repository: the site carries the file, so the link works there too."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.links")

#: The target of a Markdown link that goes up at least one folder, without its anchor.
_UPWARD = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")
#: Where the site keeps files of the repository.
_FOLDER = "repository"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Add every linked file outside of ``docs/`` to the site, and link that copy."""
    docs = Path(config.docs_dir)
    here = (docs / page.file.src_uri).parent

    def resolved(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(here / match[0]))
        if target.is_relative_to(docs):
            return match[0]
        if not target.is_file():
            log.warning("%s: no file %s", page.file.src_uri, match[0])
            return match[0]
        name = f"{_FOLDER}/{target.relative_to(docs.parent).as_posix()}"
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(target)))
        return posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")

    return _UPWARD.sub(resolved, markdown)
