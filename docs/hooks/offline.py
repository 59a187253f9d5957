"""The site loads nothing from another server: a page that would is a warning, which a strict build refuses."""

from __future__ import annotations

import logging
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.offline")

#: What a browser fetches by itself: scripts, images, style sheets, fonts, icons. Plain links are not fetched.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]*"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]*""",
)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Look for such a tag."""
    for found in _FETCHED.findall(output):
        log.warning("%s loads something from another server: %s", page.file.src_uri, found)
    return output
